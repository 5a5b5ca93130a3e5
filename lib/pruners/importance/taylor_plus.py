"""Taylor+: as Taylor, with the first and the last blocks protected, whose loss the first order underestimates.

Source: Shortened LLaMA, Kim et al., arXiv 2402.02834, section 3.1: the first four and the last two blocks are kept.
"""

import math

from torch import nn

from lib.models.blocks import blocks
from lib.pruners.importance import taylor


def score(model: nn.Module, calibration, *, first: int = 4, last: int = 2) -> list[float]:
    """The scores of `taylor`, infinite for the `first` and the `last` blocks.

    Raises ValueError, before the work, when that protects all blocks there are.
    """
    count = len(blocks(model))
    if min(first, last) < 0 or first + last >= count:
        raise ValueError(
            f"first={first} and last={last} blocks protected, of {count}: at least one block must be left to remove; "
            "protect fewer, or score by taylor."
        )
    scores = taylor.score(model, calibration)
    return [math.inf if index < first or index >= count - last else value for index, value in enumerate(scores)]
