"""Stop strings: where an answer ends because of what its text says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a process that only generates from a packed folder does without torch
    from torch import Tensor

SPARE = 8  # tokens decoded beside those that a stop string can have: characters may be split over tokens


class Stops:
    """Watches for strings in the text of new tokens.

    Raises ValueError for empty strings and for strings without a tokenizer.
    """

    def __init__(self, strings: tuple[str, ...] | list[str] | str, tokenizer):
        self.strings = [strings] if isinstance(strings, str) else list(strings)
        if not all(isinstance(each, str) and each for each in self.strings):
            raise ValueError(f"stop={self.strings!r}; strings of 1 character or more are allowed; drop the others.")
        if self.strings and tokenizer is None:
            raise ValueError(f"stop={self.strings!r} without a tokenizer; text is needed to find them; give tokenizer.")
        self.tokenizer = tokenizer
        # a token has at least one byte, and a character at most four
        self._reach = max((len(each.encode()) for each in self.strings), default=0) + SPARE

    def reached(self, new: Tensor | list[int]) -> bool:
        """Whether the text of `new` tokens [length] holds a stop string that ends in its last token."""
        if not self.strings or not len(new):
            return False
        tail = text_of(self.tokenizer, new[-self._reach :])
        return any(each in tail for each in self.strings)

    def cut(self, text: str) -> str:
        """`text` up to the first stop string in it, which is left out."""
        places = [text.find(each) for each in self.strings if each in text]
        return text[: min(places)] if places else text


def text_of(tokenizer, token_ids: Tensor | list[int]) -> str:
    """The text of token ids, without special tokens and otherwise as it stands."""
    ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
