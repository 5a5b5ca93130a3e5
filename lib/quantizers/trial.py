"""A weight rounded to nearest on trial grids, to see what fewer bits would cost it."""

import torch
from torch import Tensor

from lib.quantized.grid import choose, dequantize, quantize

ROWS = 8192  # rows that are rounded at once


def rounded(weight: Tensor, share: Tensor, bits: int, *, group_size: int, levels: str = "integer") -> Tensor:
    """Values of `weight` [rows, columns] on the grids with the least error weighted by `share` [columns]."""
    parts, grid = [], {"group_size": group_size, "levels": levels}
    for part in weight.float().split(ROWS):
        scale, zero = choose(part, bits=bits, **grid, importance=share, candidates=4)
        parts.append(dequantize(quantize(part, scale, zero, bits=bits), scale, zero, bits=bits, dtype=weight.dtype))
    return torch.cat(parts)


def error(weight: Tensor, values: Tensor, share: Tensor) -> float:
    """The squared error of `values` of `weight`, weighted by `share` [columns]."""
    # in float64: squares of weights above 1e19 overflow float32, and those below 1e-23 are flushed to zero
    return (values.double() - weight).square_().mul_(share).sum().item()
