"""Tokens of a server: the last ones of a prompt, and a first one that must not appear twice."""

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate

# what the tokenizers of common families put before a text: Llama 2 and Mistral, Gemma, Llama 3, LFM2, DeepSeek, GLM
FIRST = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[gMASK]<sop>")


class EndpointError(RuntimeError):
    """The server does not answer, or not as asked; earlier answers are in the cache."""


class Refused(EndpointError):
    """The server understood the request and refused it."""


class FirstToken:
    """How a server reads a prompt that begins with the model's first token, as chat templates write it: once.

    A server puts that token before every prompt. vLLM omits it with `add_special_tokens=false`; others do not
    know this option, and get the prompt without the written token, which they add themselves. Token counts show which
    kind a server is: for the first token written once and twice it counts n + a and 2 n + a, where a are those that it
    adds.

    count: (part of a request) -> tokens of its prompt, or None. given: the first token's text, None for `FIRST`.
    """

    def __init__(self, count: Callable[[dict], int | None], given: str | None = None):
        self._count, self._texts = count, (given,) if given else FIRST
        self._forms: dict[str, Callable[[str], dict]] = {}

    def learn(self, prompt: str) -> None:
        """Ask the server, once for each first token, where `prompt` begins with one."""
        first = self._of(prompt)
        if first and first not in self._forms:
            self._forms[first] = self._form(first)

    def body(self, prompt: str) -> dict:
        """The part of a request that gives `prompt`."""
        return self._forms.get(self._of(prompt), _whole)(prompt)

    def _of(self, prompt: str) -> str | None:
        return next((text for text in self._texts if prompt.startswith(text)), None)

    def _form(self, first: str) -> Callable[[str], dict]:
        once, twice = (self._count(_whole(first * times)) for times in (1, 2))
        if once is None or twice is None:
            return _told  # nothing is known: send the option, which may be ignored
        added = 2 * once - twice
        if added < 1:
            return _whole
        try:
            heard = self._count(_told(first)) == once - added
        except Refused:
            heard = False
        return _told if heard else lambda prompt: _whole(prompt.removeprefix(first))


def _whole(prompt: str) -> dict:
    return {"prompt": prompt}


def _told(prompt: str) -> dict:
    return {"prompt": prompt, "add_special_tokens": False}


def ending(text: str, tokens: list[str], values: list[float | None], offsets: list[int] | None = None) -> list[int]:
    """The places of the last of a prompt's `tokens`, those that make up `text` and have a log-probability in `values`.

    offsets: where each token begins, and the last one ends, by the server's count. Only distances from that end tell:
    vLLM counts the first token's text ("<s>") too. Where they are no more than lengths of tokens, or all the same
    (SGLang), white space is left out: a token decoded alone may have lost it (Llama-2's).
    Raises Refused where the tokens do not join to `text`, as when a character's parts are shown as "\ufffd".
    """
    tokens, size = [token or "" for token in tokens], len(text)
    bare, wanted = ["".join(token.split()) for token in tokens], "".join(text.split())
    lengths = [0, *accumulate(map(len, tokens))]
    if offsets is None or len(set(offsets)) == 1 or [offset - offsets[0] for offset in offsets] == lengths:
        offsets, size = [0, *accumulate(map(len, bare))], len(wanted)
    first = bisect_left(offsets, offsets[-1] - size)
    places = [n for n in range(first, len(tokens)) if values[n] is not None]
    joined = "".join(bare[n] for n in places)
    if not places or joined != wanted:
        raise Refused(
            f"the texts of the last tokens with a log-probability, {joined!r}, do not join to {wanted!r}; another "
            "server, which shows whole characters, or a local model is needed"
        )
    return places
