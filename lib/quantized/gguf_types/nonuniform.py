"""Types of 4 bits whose levels are not evenly spaced.

    type    weights  bytes  values                                            order of the bytes
    IQ4_NL  32       18     d v, v one of 16 whole numbers from -127 to 113   d in half precision, 16 of codes j, j + 16
    MXFP4   32       17     2^(e - 128) v, v one of 0 1 2 3 4 6 8 12 and      e, a byte; 16 as of IQ4_NL
                            their negatives

d may be negative. MXFP4 is the Open Compute Project's "Microscaling Formats (MX) v1.0" with doubled numbers, so that
they are whole; its steps are powers of two.
"""

import functools

import torch
from torch import Tensor

from lib.quantized.gguf_types import kinds
from lib.quantized.gguf_types.kinds import Grid, Kind

SIZE = 32
IQ4_NL = torch.tensor([-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
MXFP4 = torch.tensor([0.0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])
_LEAST, _MOST = 0, 254  # of the exponents; 255 stands for no number


def choose(levels: Tensor, rounded, weight: Tensor, importance: Tensor | None = None) -> Grid:
    """The grid of `weight` [rows, columns] with the least squared error, weighted by `importance` [columns]."""
    groups, share = kinds.grouped(weight, importance, SIZE)
    step = kinds.search_step(groups, share, levels, rounded)
    return Grid(step, None, levels, {"d": step})


def power(step: Tensor) -> Tensor:
    """The least power of two that is not below `step`, so that it reaches as far; among those of an exponent."""
    return power_of(exponent(step.abs()))


def exponent(step: Tensor) -> Tensor:
    """e of 2^(e - 128), as whole numbers."""
    return (torch.log2(step.clamp_min(1e-45)).ceil() + 128).clamp(_LEAST, _MOST)


def power_of(exponents: Tensor) -> Tensor:
    """2^(e - 128), float32; the two smallest are subnormal numbers."""
    return torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents.long() - 128).float()


def pack(levels: Tensor, grid: Grid, codes: Tensor) -> Tensor:
    """The bytes of the matrix, uint8 [rows, bytes]."""
    step = grid.step.reshape(-1)
    scale = exponent(step).to(torch.uint8)[:, None] if levels is MXFP4 else kinds.as_bytes(step)
    return torch.cat([scale, kinds.nibbles(codes.reshape(-1, SIZE))], 1).view(len(codes), -1)


def unpack(levels: Tensor, data: Tensor) -> tuple[Grid, Tensor]:
    """Grid and codes of bytes."""
    wide = 1 if levels is MXFP4 else 2
    blocks = data.reshape(-1, wide + SIZE // 2)
    step = power_of(blocks[:, 0]) if levels is MXFP4 else kinds.from_bytes(blocks[:, :2])
    step = step.view(len(data), -1)
    return Grid(step, None, levels, {"d": step}), kinds.from_nibbles(blocks[:, wide:]).reshape(len(data), -1)


def _kind(name: str, nbytes: int, levels: Tensor, rounded) -> Kind:
    made = (functools.partial(choose, levels, rounded), functools.partial(pack, levels))
    return Kind(name, SIZE, nbytes, SIZE, levels, *made, functools.partial(unpack, levels))


KINDS = {
    "IQ4_NL": _kind("IQ4_NL", 18, IQ4_NL, kinds.half),
    "MXFP4": _kind("MXFP4", 17, MXFP4, power),
}
