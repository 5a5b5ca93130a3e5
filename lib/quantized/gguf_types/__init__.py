"""The grids of llama.cpp's files: weights of a block share scales, and codes count steps or levels from there.

    kind = gguf_types.by_name("Q4_K")
    grid = kind.choose(weight, importance)          # scales first, as the file will hold them
    codes = gguf_types.nearest(weight, grid)        # then codes: the nearest, or those of GPTQ or SignRound
    matrix = gguf_types.Blocks("Q4_K", kind.pack(grid, codes))

    uniform       Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: a half-precision scale and a minimum or none for 32 or 64 weights
    nonuniform    IQ4_NL, MXFP4: levels that are not evenly spaced
    superblocks   Q2_K to Q6_K: scales of 16 or 32 weights in 4 to 8 bits, counted in a half-precision scale of 256

A weight is step · level + base, computed in float32 as llama.cpp and the `gguf` package do it, so that our numbers are
theirs bit for bit. Source: ggml-common.h and ggml-quants.c of llama.cpp (as in llama-cpp-python 0.3.36).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lib import files
from lib.quantized.gguf_types import nonuniform, superblocks, uniform
from lib.quantized.gguf_types.kinds import Grid, Kind, nearest, value

__all__ = ["TYPES", "Blocks", "Grid", "Kind", "by_name", "held", "nearest", "value"]

TYPES: dict[str, Kind] = {**uniform.KINDS, **nonuniform.KINDS, **superblocks.KINDS}


class Blocks(NamedTuple):
    """A matrix as a file holds it. kind: one of `TYPES`. data: uint8 [rows, bytes of a row]."""

    kind: str
    data: Tensor

    def unpack(self) -> tuple[Grid, Tensor]:
        """Grid and codes (uint8 [rows, columns])."""
        return TYPES[self.kind].unpack(self.data)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights [rows, columns], computed in float32 and rounded once to `dtype`."""
        return value(*self.unpack()).to(dtype)


def by_name(name: str) -> Kind:
    """The type called `name`; ValueError with the choices for others."""
    if name not in TYPES:
        raise ValueError(f"there is no type {name!r} to aim at; {files.choices(name, TYPES)}")
    return TYPES[name]


def held(name: str, columns: int) -> bool:
    """Whether a matrix of so many columns can have this type: its blocks must divide them."""
    return columns % by_name(name).block == 0
