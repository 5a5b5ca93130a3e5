"""The K-types: superblocks of 256 weights, whose 8 or 16 groups have whole numbers as scales, counted in a half d.

    type  bytes  groups   values              a group's scales          order of the bytes
    Q2_K  84     16 x 16  d s u - dmin m      s, m of 0 to 15           s and m, u of 2 bits, d, dmin
    Q3_K  110    16 x 16  d s (u - 4)         s of -32 to 31            third bits of u, two bits of u, s, d
    Q4_K  144    8 x 32   d s u - dmin m      s, m of 0 to 63           d, dmin, s and m, u of 4 bits
    Q5_K  176    8 x 32   d s u - dmin m      s, m of 0 to 63           d, dmin, s and m, fifth bits of u, the others
    Q6_K  210    16 x 16  d s (u - 32)        s of -128 to 127          four bits of u, two bits of u, s, d

The scales of the groups are found as real numbers first. d and dmin are the largest over the largest whole number, and
each group then takes the whole numbers next to its own, or a neighbour of them, whichever errs least.
"""

import functools
import itertools

import torch
from torch import Tensor

from lib.quantized.gguf_types import kinds
from lib.quantized.gguf_types.kinds import Grid, Kind

SIZE = 256
_BESIDE = (0, -1, 1)  # whole numbers tried around the nearest one


def choose_symmetric(levels: Tensor, least: int, weight: Tensor, importance: Tensor | None = None) -> Grid:
    """The grid of Q3_K and Q6_K, whose groups have scales from `least` to -`least` - 1."""
    groups, share = kinds.grouped(weight, importance, 16)
    step = kinds.search_step(groups, share, levels, lambda real: real)
    each = step.view(len(step), -1, 16)
    largest = each.gather(-1, each.abs().argmax(-1, keepdim=True))
    d = kinds.half(largest / least)
    whole = torch.where(d == 0, 0, each / d).round()

    def grid(by: Tensor | int = 0) -> Grid:
        return _symmetric(levels, d[..., 0], (whole + by).clamp(least, -least - 1))

    tried = [grid(by) for by in _BESIDE]
    chosen = _best(groups, share, tried).view_as(each)
    return grid(torch.tensor(_BESIDE, dtype=torch.float32)[chosen])


def choose_with_minimum(top: int, size: int, most: int, weight: Tensor, importance: Tensor | None = None) -> Grid:
    """The grid of Q2_K, Q4_K and Q5_K: codes up to `top`, groups of `size`, scales and minima up to `most`."""
    groups, share = kinds.grouped(weight, importance, size)
    step, base = kinds.search_range(groups, share, top, zero=True)
    count = SIZE // size
    step, minimum = step.view(len(step), -1, count), -base.view(len(base), -1, count)
    d, dmin = (kinds.half(each.amax(-1, keepdim=True) / most) for each in (step, minimum))
    whole = [torch.where(of == 0, 0, real / of).round() for real, of in ((step, d), (minimum, dmin))]

    def grid(by_scale: Tensor | int, by_minimum: Tensor | int) -> Grid:
        scale, least = ((each + by).clamp(0, most) for each, by in zip(whole, (by_scale, by_minimum), strict=True))
        return _with_minimum(top, d[..., 0], dmin[..., 0], scale, least)

    pairs = list(itertools.product(_BESIDE, _BESIDE))
    chosen = _best(groups, share, [grid(*pair) for pair in pairs]).view_as(step)
    beside = torch.tensor(pairs, dtype=torch.float32)[chosen]
    return grid(beside[..., 0], beside[..., 1])


def _best(groups: Tensor, share: Tensor, tried: list[Grid]) -> Tensor:
    """Which of the grids errs least, for each group: [rows, groups]."""
    weight = groups.flatten(1)
    errors = [
        ((kinds.value(grid, kinds.nearest(weight, grid)).view_as(groups) - groups).square() * share).sum(-1)
        for grid in tried
    ]
    return torch.stack(errors).argmin(0)


def _symmetric(levels: Tensor, d: Tensor, whole: Tensor) -> Grid:
    """d: [rows, superblocks]. whole: [rows, superblocks, groups]."""
    return Grid((d[..., None] * whole).flatten(1), None, levels, {"d": d, "s": whole})


def _with_minimum(top: int, d: Tensor, dmin: Tensor, scale: Tensor, least: Tensor) -> Grid:
    levels = torch.arange(top + 1, dtype=torch.float32)
    stored = {"d": d, "dmin": dmin, "s": scale, "m": least}
    return Grid((d[..., None] * scale).flatten(1), -(dmin[..., None] * least).flatten(1), levels, stored)


def planes(codes: Tensor, bits: int, run: int) -> Tensor:
    """Bytes of `codes` [blocks, count]: `run` neighbours lie in as many bytes, the next `run` above them, and so on."""
    shifts = torch.arange(0, 8, bits)[:, None]
    return (codes.reshape(len(codes), -1, 8 // bits, run).int() << shifts).sum(2).to(torch.uint8).flatten(1)


def from_planes(data: Tensor, bits: int, run: int) -> Tensor:
    """The inverse of `planes`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    return ((data.reshape(len(data), -1, 1, run) >> shifts) & (2**bits - 1)).flatten(1)


def sixes(scale: Tensor, least: Tensor) -> Tensor:
    """8 scales and 8 minima of 6 bits in 12 bytes: 4 and 4 whole, whose upper two bits are of the others."""
    s, m = scale.int(), least.int()
    whole = [each[:, :4] | (each[:, 4:] >> 4) << 6 for each in (s, m)]
    return torch.cat([*whole, (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], 1).to(torch.uint8)


def from_sixes(data: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `sixes`."""
    first, second, lower = data[:, :4], data[:, 4:8], data[:, 8:]
    scale = torch.cat([first & 63, lower & 15 | (first >> 2) & 48], 1)
    return scale.float(), torch.cat([second & 63, lower >> 4 | (second >> 2) & 48], 1).float()


def sixteen_sixes(scale: Tensor) -> Tensor:
    """16 scales of 6 bits, -32 to 31, in 12 bytes: their lower four bits in 8, the upper two in 4."""
    raised = (scale + 32).to(torch.uint8)
    return torch.cat([planes(raised & 15, 4, 8), planes(raised >> 4, 2, 4)], 1)


def from_sixteen_sixes(data: Tensor) -> Tensor:
    """The inverse of `sixteen_sixes`."""
    return (from_planes(data[:, :8], 4, 8) | from_planes(data[:, 8:], 2, 4) << 4).float() - 32


def pack(name: str, grid: Grid, codes: Tensor) -> Tensor:
    """The bytes of the matrix, uint8 [rows, bytes]."""
    u = codes.reshape(-1, SIZE)
    stored = {key: part.reshape(len(u), -1) for key, part in grid.stored.items()}
    d, s = kinds.as_bytes(stored["d"][:, 0]), stored["s"]
    dmin, m = (kinds.as_bytes(stored["dmin"][:, 0]), stored["m"]) if "m" in stored else (None, None)
    if name == "Q2_K":
        parts = [s.to(torch.uint8) | m.to(torch.uint8) << 4, planes(u, 2, 32), d, dmin]
    elif name == "Q3_K":
        parts = [planes(u >> 2, 1, 32), planes(u & 3, 2, 32), sixteen_sixes(s), d]
    elif name == "Q4_K":
        parts = [d, dmin, sixes(s, m), planes(u, 4, 32)]
    elif name == "Q5_K":
        parts = [d, dmin, sixes(s, m), planes(u >> 4, 1, 32), planes(u & 15, 4, 32)]
    else:
        parts = [planes(u & 15, 4, 64), planes(u >> 4, 2, 32), s.to(torch.int8).view(torch.uint8), d]
    return torch.cat(parts, 1).view(len(codes), -1)


def unpack(name: str, levels: Tensor, data: Tensor) -> tuple[Grid, Tensor]:
    """Grid and codes of bytes."""
    rows, blocks = len(data), data.reshape(-1, NBYTES[name])

    def split(*sizes: int):
        return blocks.split([*sizes], 1)

    if name == "Q2_K":
        both, u, d, dmin = split(16, 64, 2, 2)
        s, m, u = both & 15, both >> 4, from_planes(u, 2, 32)
    elif name == "Q3_K":
        third, u, s, d = split(32, 64, 12, 2)
        s, u = from_sixteen_sixes(s), from_planes(third, 1, 32) << 2 | from_planes(u, 2, 32)
    elif name == "Q4_K":
        d, dmin, both, u = split(2, 2, 12, 128)
        (s, m), u = from_sixes(both), from_planes(u, 4, 32)
    elif name == "Q5_K":
        d, dmin, both, fifth, u = split(2, 2, 12, 32, 128)
        (s, m), u = from_sixes(both), from_planes(fifth, 1, 32) << 4 | from_planes(u, 4, 32)
    else:
        low, high, s, d = split(128, 64, 16, 2)
        s, u = s.contiguous().view(torch.int8), from_planes(low, 4, 64) | from_planes(high, 2, 32) << 4
    codes, d, s = u.reshape(rows, -1), kinds.from_bytes(d).view(rows, -1), s.float().view(rows, -1, s.shape[1])
    if name in ("Q3_K", "Q6_K"):
        return _symmetric(levels, d, s), codes
    dmin, m = kinds.from_bytes(dmin).view(rows, -1), m.float().view(rows, -1, m.shape[1])
    return _with_minimum(len(levels) - 1, d, dmin, s, m), codes


NBYTES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def _kind(name: str, bits: int, group: int, choose, centre: int = 0) -> Kind:
    levels = torch.arange(2**bits, dtype=torch.float32) - centre
    packing = functools.partial(pack, name), functools.partial(unpack, name, levels)
    return Kind(name, SIZE, NBYTES[name], group, levels, functools.partial(choose, levels), *packing)


def _minimum(group: int, most: int):
    def choose(levels: Tensor, weight: Tensor, importance: Tensor | None = None) -> Grid:
        return choose_with_minimum(len(levels) - 1, group, most, weight, importance)

    return choose


def _scaled(least: int):
    def choose(levels: Tensor, weight: Tensor, importance: Tensor | None = None) -> Grid:
        return choose_symmetric(levels, least, weight, importance)

    return choose


KINDS = {
    "Q2_K": _kind("Q2_K", 2, 16, _minimum(16, 15)),
    "Q3_K": _kind("Q3_K", 3, 16, _scaled(-32), 4),
    "Q4_K": _kind("Q4_K", 4, 32, _minimum(32, 63)),
    "Q5_K": _kind("Q5_K", 5, 32, _minimum(32, 63)),
    "Q6_K": _kind("Q6_K", 6, 16, _scaled(-128), 32),
}
