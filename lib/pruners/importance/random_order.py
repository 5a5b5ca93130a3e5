"""Random order: the baseline that every score must beat."""

import torch
from torch import nn

from lib.models.blocks import blocks


def score(model: nn.Module, calibration=None, *, seed: int = 0) -> list[float]:
    """A random number from 0 to 1 for each block, from a generator of its own; the text is not used."""
    return torch.rand(len(blocks(model)), generator=torch.Generator().manual_seed(seed)).tolist()
