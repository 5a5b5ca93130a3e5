"""Copies of a model with smaller vocabularies, to compare: `trim.trim_` works in place."""

import copy

import numpy as np
from torch import nn

from lib.tokenizers import trim


def trimmed(model: nn.Module, occurrences: np.ndarray, share: float) -> nn.Module | None:
    """A copy of `model` with `share` of its entries, 1 for all; None where it can't go so far, which is printed.

    occurrences: as `trim.trim_` takes them. Raises ValueError for a share outside of 0 to 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}; above 0 up to 1 is allowed, 1 for all entries; two thirds are 0.67.")
    found = copy.deepcopy(model)
    found.tokenizer = model.tokenizer
    if share < 1:
        try:
            trim.trim_(found, occurrences, round(share * len(model.tokenizer)))
        except ValueError as error:
            print(f"no copy with {share:g} of the entries: {error}")
            return None
    return found
