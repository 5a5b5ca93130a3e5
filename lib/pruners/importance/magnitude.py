"""Magnitude: the sum of a block's absolute weights; small weights matter little.

Source: Shortened LLaMA, Kim et al., arXiv 2402.02834, section 3.1, I_Magnitude, after Li et al., arXiv 1608.08710.
"""

import torch
from torch import nn

from lib.models.blocks import blocks
from lib.pruners.importance import taylor


@torch.no_grad()
def score(model: nn.Module, calibration=None) -> list[float]:
    """Σ |W| over all weights of the block's matrices; the calibration text is not used.

    Raises ValueError for quantized models.
    """
    return [
        sum(weight.abs().sum(dtype=torch.float64).item() for weight in taylor.matrices(block))
        for block in blocks(model)
    ]
