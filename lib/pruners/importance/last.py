"""Last blocks: the baseline that removes blocks from the end of the model."""

from torch import nn

from lib.models.blocks import blocks


def score(model: nn.Module, calibration=None) -> list[float]:
    """How many blocks come after each: the last one goes first; nothing is looked at."""
    return [float(after) for after in reversed(range(len(blocks(model))))]
