"""Types with a half-precision scale d for 32 or 64 weights, a minimum m or none, and evenly spaced codes u.

    type   weights  bytes  values                        order of the bytes
    Q2_0   64       18     d (u - 1), u of 0 to 3        d, 16 of 4 codes that follow one another, lowest bits first
    Q4_0   32       18     d (u - 8), u of 0 to 15       d, 16 of codes j and j + 16
    Q4_1   32       20     d u + m                       d, m, 16 as of Q4_0
    Q5_0   32       22     d (u - 16), u of 0 to 31      d, 4 of the fifth bits, 16 as of Q4_0 of the others
    Q5_1   32       24     d u + m                       d, m, the rest as of Q5_0
    Q8_0   32       34     d u, u of -128 to 127         d, 32 of u

d may be negative, which gives the side with one value more to positive weights.
"""

import functools

import torch
from torch import Tensor

from lib.quantized.gguf_types import kinds
from lib.quantized.gguf_types.kinds import Grid, Kind

_FIFTH = torch.arange(8)  # places of the fifth bits of eight codes in a byte
_PAIRS = torch.tensor([0, 2, 4, 6])  # places of four codes of 2 bits in a byte


def _levels(bits: int, centre: int | None) -> Tensor:
    return torch.arange(2**bits, dtype=torch.float32) - (centre or 0)


def choose(levels: Tensor, size: int, minimum: bool, weight: Tensor, importance: Tensor | None = None) -> Grid:
    """The grid of `weight` [rows, columns] with the least squared error, weighted by `importance` [columns]."""
    groups, share = kinds.grouped(weight, importance, size)
    if not minimum:
        return _grid(levels, kinds.search_step(groups, share, levels))
    step, base = kinds.search_range(groups, share, len(levels) - 1)
    return _grid(levels, kinds.half(step), kinds.half(base))


def _grid(levels: Tensor, step: Tensor, base: Tensor | None = None) -> Grid:
    return Grid(step, base, levels, {"d": step} | ({} if base is None else {"m": base}))


def pack(bits: int, size: int, grid: Grid, codes: Tensor) -> Tensor:
    """The bytes of the matrix, uint8 [rows, bytes]."""
    rows, blocks = len(codes), codes.reshape(-1, size)
    parts = [kinds.as_bytes(part.reshape(-1)) for part in grid.stored.values()]
    if bits == 8:
        parts.append(blocks ^ 128)  # u + 128 as u, a signed number
    elif bits == 2:
        fours = blocks.view(-1, 16, 4).int()
        parts.append((fours << _PAIRS).sum(-1).to(torch.uint8))
    else:
        if bits == 5:
            parts.append((((blocks >> 4).view(-1, 4, 8).int()) << _FIFTH).sum(-1).to(torch.uint8))
        parts.append(kinds.nibbles(blocks & 15))
    return torch.cat(parts, 1).view(rows, -1)


def unpack(bits: int, size: int, levels: Tensor, minimum: bool, data: Tensor) -> tuple[Grid, Tensor]:
    """Grid and codes of bytes."""
    halves = 2 if minimum else 1
    rows, blocks = len(data), data.reshape(-1, 2 * halves + bits * size // 8)
    scales = [kinds.from_bytes(blocks[:, 2 * part : 2 * part + 2]).view(rows, -1) for part in range(halves)]
    rest = blocks[:, 2 * halves :]
    if bits == 8:
        codes = rest ^ 128
    elif bits == 2:
        codes = (rest[..., None] >> _PAIRS) & 3
    elif bits == 5:
        fifth = (rest[:, :4, None] >> _FIFTH) & 1
        codes = kinds.from_nibbles(rest[:, 4:]) | fifth.reshape(-1, 32) << 4
    else:
        codes = kinds.from_nibbles(rest)
    return _grid(levels, *scales), codes.to(torch.uint8).reshape(rows, -1)


def _kind(name: str, bits: int, centre: int | None, size: int = 32) -> Kind:
    levels, minimum = _levels(bits, centre), centre is None
    return Kind(
        name,
        size,
        (4 if minimum else 2) + bits * size // 8,
        size,
        levels,
        functools.partial(choose, levels, size, minimum),
        functools.partial(pack, bits, size),
        functools.partial(unpack, bits, size, levels, minimum),
    )


KINDS = {
    "Q2_0": _kind("Q2_0", 2, 1, 64),
    "Q4_0": _kind("Q4_0", 4, 8),
    "Q4_1": _kind("Q4_1", 4, None),
    "Q5_0": _kind("Q5_0", 5, 16),
    "Q5_1": _kind("Q5_1", 5, None),
    "Q8_0": _kind("Q8_0", 8, 128),
}
