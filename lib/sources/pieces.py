"""A text's tokens cut into the pieces that windows hold, behind what each window begins with."""

from array import array
from collections.abc import Sequence

import numpy as np

AT_ONCE = 1 << 20  # tokens looked at together


def starts(ids: np.ndarray, first: list[int], length: int) -> Sequence[int]:
    """Where the pieces of `length - len(first)` tokens begin in `ids` [tokens], from the start and without overlap.

    Each will stand behind `first`. Where the text itself has `first` written at a piece's beginning (a chat template
    writes "<bos>"), it is left out there, so that no window begins with it twice. Raises ValueError for a `length` that
    leaves no room for text.
    """
    room, size = length - len(first), len(first)
    if room < 1:
        raise ValueError(
            f"length={length} of windows that begin with {size} tokens of the tokenizer's own; more are needed, "
            "so that text follows; ask longer windows."
        )
    written = _written(ids, first)
    if not len(written):
        return range(0, len(ids) // room * room, room)
    found, place, next_one = array("q"), 0, 0
    while True:
        while next_one < len(written) and written[next_one] < place:
            next_one += 1
        place += size if next_one < len(written) and written[next_one] == place else 0
        if place + room > len(ids):
            return found
        found.append(place)
        place += room


def _written(ids: np.ndarray, first: list[int]) -> np.ndarray:
    """The places in `ids` at which `first` stands."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(ids) - len(first) + 1, AT_ONCE) if first else ():
        some = ids[start : start + AT_ONCE + len(first) - 1]
        count = len(some) - len(first) + 1
        alike = np.logical_and.reduce([some[place : place + count] == token for place, token in enumerate(first)])
        found.append(np.flatnonzero(alike) + start)
    return np.concatenate(found)
