"""Round to nearest: each weight goes to the closest point of its group's grid; no calibration, no compensation.

The baseline that every other method has to beat. Source: Nagel et al., arXiv 2106.08295, equations 4 to 8.
"""

import torch
from torch import nn

from lib.jobs import JobState, fingerprint
from lib.quantized.grid import Quantized, choose, fitted, quantize
from lib.quantizers import calibrate, layerwise


@torch.no_grad()
def quantize_(
    model: nn.Module,
    calibration=None,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    candidates: int = 1,
    state=None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: not used, part of the common signature. bits: 2 to 8. group_size: columns per grid, -1 for a row.
    levels: of the grids, see `quantized.levels`. candidates: ranges tried per group (1: its minimum and maximum).
    state: folder that keeps finished blocks, so that a killed job resumes.
    """
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels}
    settings |= {"candidates": candidates}
    calibrate.check_layers(model, **settings)
    if state is not None:
        state = JobState(state, method="rtn", **fingerprint(model), **settings)
    return layerwise.replace_(model, lambda weight: rtn(weight, **settings), state=state)


def rtn(
    weight, *, bits: int, group_size: int, symmetric: bool = False, levels: str = "integer", candidates: int = 1
) -> Quantized:
    """Round `weight` [rows, columns] to the nearest points of its grids."""
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    grid = {"symmetric": symmetric, "levels": levels, "candidates": candidates}
    scale, zero = choose(weight, bits=bits, group_size=size, **grid)
    return Quantized(quantize(weight, scale, zero, bits=bits), scale, zero, bits, size, levels=levels)
