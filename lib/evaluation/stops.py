"""When a generation ends: an end token, a stop string, or as many tokens as were asked for."""

from torch import nn

from lib.tasks.task import Generation


def end_tokens(model: nn.Module, tokenizer) -> frozenset[int]:
    """The tokens that end a text: those of the model's generation settings, and the tokenizer's own."""
    settings = getattr(model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*found, tokenizer.eos_token_id] if token is not None)


class Watch:
    """Reads a generation token by token, until it has `ended`; `text()` is then what came before the end.

    Stop strings are looked for in the text with its special tokens and cut from the text without them, as `HFLM` does.
    """

    def __init__(self, tokenizer, request: Generation, ends: frozenset[int]):
        self.tokenizer, self.request, self.ends = tokenizer, request, ends
        self.until = [stop for stop in request.until if stop]
        # a token holds a byte at least, and the one before may end in the middle of a character
        self.tail = max((len(stop.encode()) for stop in self.until), default=0) + 4
        self.tokens: list[int] = []
        self.ended = False

    def see(self, token: int) -> bool:
        """Take the next token; returns whether the generation has ended with it."""
        self.tokens.append(token)
        self.ended = (
            token in self.ends
            or len(self.tokens) >= self.request.max_new_tokens
            # a tail decodes in microseconds; only what it seems to hold is looked for in the whole
            or (self._stops(self.tokens[-self.tail :]) and self._stops(self.tokens))
        )
        return self.ended

    def _stops(self, tokens: list[int]) -> bool:
        if not self.until:
            return False
        text = self.tokenizer.decode(tokens)
        return any(stop in text for stop in self.until)

    def text(self) -> str:
        """The generated text, special tokens left out, up to the first stop string."""
        return cut(self.tokenizer.decode(self.tokens, skip_special_tokens=True), self.until)


def cut(text: str, until) -> str:
    """`text` up to the first of the strings `until`."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text
