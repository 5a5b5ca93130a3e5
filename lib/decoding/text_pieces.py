"""An answer's text while its tokens come: the pieces join to the text that the whole answer has."""

from lib.decoding.stops import Stops

HALF = "\ufffd"  # what a tokenizer writes for bytes that are no whole character (yet)


class Pieces:
    """The text that each token adds; "" where a character is not complete yet, which the next token's text then has.

    tokenizer: anything with `decode`. special: whether special tokens are written.
    """

    def __init__(self, tokenizer, *, special: bool = False):
        self.tokenizer, self.special = tokenizer, special
        self._tokens: list[int] = []
        self._begin = self._told = 0  # the window that is decoded begins there; the text up to there was given

    def add(self, token: int) -> str:
        """The text that `token` adds."""
        self._tokens.append(token)
        found = self._untold()
        if not found or found.endswith(HALF):
            return ""
        # tokens of the last piece stay in the window: some tokenizers write a token otherwise at a text's beginning
        self._begin, self._told = self._told, len(self._tokens)
        return found

    def rest(self) -> str:
        """What is left at the end of an answer: halves of characters."""
        found = self._untold()
        self._begin = self._told = len(self._tokens)
        return found

    def _untold(self) -> str:
        before = self._text(self._tokens[self._begin : self._told])
        return self._text(self._tokens[self._begin :])[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=not self.special) if tokens else ""


class Cut:
    """Text up to the first stop string, as it comes: what may be the beginning of one is held back until it is none."""

    def __init__(self, stops: Stops):
        self.stops = stops
        self._held, self._given, self._over = "", 0, False

    def add(self, piece: str) -> str:
        """Take a piece; returns what can be shown now."""
        if self._over:
            return ""
        text = self._held + piece
        shown = self.stops.cut(text)
        self._over = len(shown) < len(text)
        if not self._over:
            shown = text[: len(text) - self._beginning(text)]
        self._held = text[len(shown) :]
        self._given += len(shown)
        return shown

    def rest(self, whole: str) -> str:
        """What was not shown of the `whole` text of the answer."""
        return whole[self._given :]

    def _beginning(self, text: str) -> int:
        """Characters at the end of `text` that may begin a stop string."""
        longest = max((len(each) for each in self.stops.strings), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(each.startswith(text[-count:]) for each in self.stops.strings):
                return count
        return 0
