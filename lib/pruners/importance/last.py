"""Last blocks: the baseline that removes blocks from the end of the model."""

from torch import nn

from lib.models.blocks import blocks


def score(model: nn.Module, calibration=None) -> list[float]:
    """The number of blocks after each one, so that the last block is removed first; the text is not used."""
    return [float(after) for after in reversed(range(len(blocks(model))))]
