"""Prompt lookup decoding: drafts the tokens that followed the latest occurrence of the last n tokens.

It searches the prompt and the generated text for the last n tokens, the longest n first; the tokens behind the latest
match are the draft. It needs no drafting model, and helps where answers repeat their prompt: summaries, quotations,
edited code.

Source: Saxena, "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding, 2023); Yang et al.,
"Inference with Reference", arXiv 2304.04487, section 3.2.
"""

import numpy as np
import torch
from torch import Tensor

from lib.decoding.verify import NOTHING, Draft, Drafter


class Lookup(Drafter):
    """A drafter that copies from the text itself.

    max_ngram: longest match that is searched; shorter ones are tried down to `min_ngram`. draft_length: tokens
    proposed at most. adaptive: begin with half of them, double after a fully accepted draft, else one more than
    were accepted. Raises ValueError for numbers below 1.
    """

    def __init__(self, *, max_ngram: int = 3, draft_length: int = 10, min_ngram: int = 1, adaptive: bool = True):
        for name, value in (("max_ngram", max_ngram), ("draft_length", draft_length), ("min_ngram", min_ngram)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}; choose a whole number from 1.")
        if min_ngram > max_ngram:
            raise ValueError(f"min_ngram={min_ngram} is more than max_ngram={max_ngram}; choose 1 to {max_ngram}.")
        self.max_ngram, self.min_ngram, self.draft_length = max_ngram, min_ngram, draft_length
        self.length = Length(draft_length, adaptive)

    def begin(self, token_ids: Tensor) -> None:
        """Reset the draft length: acceptance in the last answer does not predict the next one's."""
        self.length.forget()

    def draft(self, token_ids: Tensor, at_most: int | None = None) -> Draft:
        """Tokens that may follow `token_ids` [length]: what followed the latest earlier match; none without a match."""
        count = self.length.next(token_ids)
        count = count if at_most is None else min(count, at_most)
        start = self._continuation(token_ids.numpy())
        if start is None or count < 1:
            return NOTHING
        # a match that overlaps the end goes on with the draft itself, so that "ababab" goes on with "ababab"
        period = len(token_ids) - start
        found = Draft(token_ids[start + torch.arange(count) % period])
        self.length.proposed(token_ids, found.token_ids)
        return found

    def _continuation(self, ids: np.ndarray) -> int | None:
        """Where the text behind the latest earlier occurrence of the longest matching end of `ids` begins."""
        ends, found = np.flatnonzero(ids[:-1] == ids[-1]), None  # most texts end here, after one comparison
        for n in range(1, self.max_ngram + 1):
            if not len(ends):
                break
            found = int(ends[-1]) + 1 if n >= self.min_ngram else None
            ends = ends[ends >= n]
            ends = ends[ids[ends - n] == ids[-n - 1]] if n < len(ids) else ends[:0]
        return found


class Length:
    """How many tokens to draft next, from the acceptance of the last draft."""

    def __init__(self, longest: int, adaptive: bool = True):
        self.longest, self.adaptive = longest, adaptive
        self.forget()

    def next(self, token_ids: Tensor) -> int:
        """The length of the next draft behind `token_ids`, which show how much of the last draft was accepted."""
        if not self.adaptive:
            return self.longest
        if self._last is not None:
            before, guesses = self._last
            seen = token_ids[before : before + len(guesses)]
            if len(token_ids) <= before:  # another text begins
                self.forget()
            elif len(seen) == len(guesses) and torch.equal(seen, guesses):
                self._current = min(self.longest, 2 * max(self._current, len(guesses)))
            else:
                agree = int((seen == guesses[: len(seen)]).int().cumprod(0).sum())
                self._current = min(self.longest, agree + 1)
            self._last = None
        return self._current

    def proposed(self, token_ids: Tensor, guesses: Tensor) -> None:
        """Store the draft proposed behind `token_ids`."""
        self._last = (len(token_ids), guesses)

    def forget(self) -> None:
        """Reset to the initial state."""
        self._current, self._last = max(1, self.longest // 2), None
