"""Stop conditions: an end token, a stop string, or the maximum number of new tokens.

Stop strings follow the rule of lm-evaluation-harness's `HFLM` and transformers' `StopStringCriteria`: they are searched
in the text of the new tokens, special tokens included, so that "<|user|>" ends an answer and "ab" is not found in
"a<|user|>b". The returned text has no special tokens and ends before the first stop string in it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from lib import tokenization

if TYPE_CHECKING:  # a process that only generates from a packed folder needs no torch
    from torch import Tensor

SPARE = 8  # tokens decoded beside those that a stop string can have: characters may be split over tokens


class Stops:
    """Searches for stop strings in the text of new tokens.

    Raises ValueError for empty strings, for half a character, and for strings without a tokenizer.
    """

    def __init__(self, strings: tuple[str, ...] | list[str] | str, tokenizer):
        self.strings = [strings] if isinstance(strings, str) else list(strings)
        if not all(isinstance(each, str) and each for each in self.strings):
            raise ValueError(f"stop={self.strings!r}; strings of 1 character or more are allowed; drop the others.")
        for each in self.strings:
            tokenization.check(each, "a stop string")
        if self.strings and tokenizer is None:
            raise ValueError(f"stop={self.strings!r} without a tokenizer; text is needed to find them; give tokenizer.")
        self.tokenizer = tokenizer
        # a token has at least one byte, and a character at most four
        self._reach = max((len(each.encode(errors="replace")) for each in self.strings), default=0) + SPARE

    def reached(self, new: Tensor | list[int]) -> bool:
        """Whether the text of `new` tokens [length] holds a stop string that ends in its last token."""
        if not self.strings or not len(new):
            return False
        # a tail decodes in microseconds; only what it seems to hold is looked for in the whole
        return self._holds(new[-self._reach :]) and self._holds(new)

    def _holds(self, new) -> bool:
        text = self.tokenizer.decode(_list(new), skip_special_tokens=False)
        return any(each in text for each in self.strings)

    def cut(self, text: str) -> str:
        """`text` up to the first stop string in it, which is left out."""
        for each in self.strings:
            text = text.split(each)[0]
        return text

    def text(self, new: Tensor | list[int]) -> str:
        """The text of `new` tokens without special tokens, up to the first stop string."""
        return self.cut(text_of(self.tokenizer, new))


class Watch:
    """Reads an answer token by token until it has ended; `reason` then says why: "eos", "stop" or "length".

    ends: token ids that end it. most: tokens that it has at most.
    """

    def __init__(self, stops: Stops, ends: Collection[int], most: int):
        self.stops, self.ends, self.most = stops, frozenset(ends), most
        self.tokens: list[int] = []
        self.reason = ""

    def see(self, token: int) -> bool:
        """Take the next token; returns whether the answer has ended with it."""
        self.tokens.append(token)
        if token in self.ends:
            self.reason = "eos"
        elif self.stops.reached(self.tokens):
            self.reason = "stop"
        elif len(self.tokens) >= self.most:
            self.reason = "length"
        return bool(self.reason)

    def text(self) -> str | None:
        """The text so far, without special tokens and up to the first stop string; None without a tokenizer."""
        return None if self.stops.tokenizer is None else self.stops.text(self.tokens)


def text_of(tokenizer, token_ids: Tensor | list[int]) -> str:
    """The text of token ids, without special tokens and otherwise as the tokenizer writes it."""
    return tokenizer.decode(_list(token_ids), skip_special_tokens=True)


def _list(token_ids) -> list[int]:
    return token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
