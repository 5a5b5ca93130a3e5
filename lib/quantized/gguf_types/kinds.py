"""What all types of blocks share: their description, a matrix's grid, the nearest codes and the values of codes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.quantized.grid import AT_ONCE, SHRINK

CANDIDATES = 8  # ranges tried for each group of weights


class Grid(NamedTuple):
    """The scales of a matrix as its file holds them.

    step: float32 [rows, groups]. base: the same, None for zeros. levels: float32, of each code. stored: the tensors
    from which step and base are computed, as the file holds them.
    """

    step: Tensor
    base: Tensor | None
    levels: Tensor
    stored: dict[str, Tensor]


class Kind(NamedTuple):
    """A type. block: weights that are stored together. nbytes: of a block. group: weights that share a step.

    levels: float32, of each code. choose(weight [rows, columns], importance [columns] or None) -> Grid.
    pack(grid, codes [rows, columns]) -> uint8 [rows, bytes]. unpack(data) -> (grid, codes).
    """

    name: str
    block: int
    nbytes: int
    group: int
    levels: Tensor
    choose: Callable
    pack: Callable
    unpack: Callable

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.nbytes / self.block


def value(grid: Grid, codes: Tensor) -> Tensor:
    """The weights of `codes` [rows, columns], float32: one product and one sum, each rounded, as llama.cpp does it."""
    groups = grid.levels.to(codes.device)[codes.long()].view(*grid.step.shape, -1) * grid.step[..., None]
    return (groups if grid.base is None else groups + grid.base[..., None]).view(codes.shape)


def nearest(weight: Tensor, grid: Grid) -> Tensor:
    """The codes (uint8) whose values are nearest to `weight` [rows, columns]."""
    groups = weight.float().view(*grid.step.shape, -1)
    base = None if grid.base is None else grid.base[..., None]
    return _codes(groups, grid.step[..., None], base, grid.levels).to(torch.uint8).view(weight.shape)


def _codes(groups: Tensor, step: Tensor, base: Tensor | None, levels: Tensor) -> Tensor:
    """Nearest codes of `groups` [..., size]; step and base broadcast. A step of zero has one value: any code does."""
    ratio = groups if base is None else groups - base
    return code_of(torch.where(step == 0, 0, ratio / step), levels)


def code_of(ratio: Tensor, levels: Tensor) -> Tensor:
    """The codes of the levels nearest to `ratio`, as whole numbers."""
    first, count = float(levels[0]), len(levels)
    if is_even(levels):
        return (ratio - first).round().clamp(0, count - 1)
    ordered, order = levels.to(ratio.device).unique(return_inverse=True)  # MXFP4 has two zeros
    of_level = torch.empty(len(ordered), dtype=torch.long, device=ratio.device)
    of_level[order.flip(0)] = torch.arange(count, device=ratio.device).flip(0)  # the first code of a level wins
    return of_level[torch.bucketize(ratio, (ordered[1:] + ordered[:-1]) / 2)]


def is_even(levels: Tensor) -> bool:
    """Whether the levels are neighbouring whole numbers."""
    return len(levels) == round(float(levels[-1] - levels[0])) + 1


def grouped(weight: Tensor, importance: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """`weight` as float32 [rows, groups, size], and the importance of each place, [1, groups, size]."""
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // size, size)
    share = torch.ones(columns, device=weight.device) if importance is None else importance.float()
    return groups, share.reshape(1, columns // size, size)


def by_rows(groups: Tensor) -> list[slice]:
    """Rows whose weights fit the caches together."""
    count = max(1, AT_ONCE // max(1, groups[0].numel()))
    return [slice(start, start + count) for start in range(0, len(groups), count)]


def half(values: Tensor) -> Tensor:
    """`values` rounded to half precision, and as large as it can be at most."""
    most = torch.finfo(torch.float16).max
    return values.clamp(-most, most).to(torch.float16).float()


def search_step(groups: Tensor, share: Tensor, levels: Tensor, rounded: Callable = half, both: bool = True) -> Tensor:
    """The step [rows, groups] of values step · level with the least squared error, weighted by `share`.

    Steps that reach the whole range of a group and shares of it down to `SHRINK` are tried, of both signs where
    the levels are not alike on both sides, each refit to its codes by least squares, and stored as `rounded` has it.
    """
    found = [_search_step(groups[part], share, levels, rounded, both) for part in by_rows(groups)]
    return torch.cat(found)


def _search_step(groups, share, levels, rounded, both) -> Tensor:
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    bottom, top = float(levels.min()), float(levels.max())
    best = least = None
    for sign in (1, -1) if both and bottom != -top else (1,):
        near, far = (low, high) if sign > 0 else (-high, -low)
        full = torch.maximum(far / top, near / bottom)
        for ratio in torch.linspace(1, SHRINK, CANDIDATES).tolist():
            step = rounded(sign * full * ratio)
            for refit in (False, True):
                chosen = levels[_codes(groups, step[..., None], None, levels).long()]
                if refit:
                    weighted = chosen * share
                    fitted = rounded((weighted * groups).sum(-1) / (weighted * chosen).sum(-1))
                    step = torch.where(torch.isfinite(fitted), fitted, step)
                    chosen = levels[_codes(groups, step[..., None], None, levels).long()]
                error = ((chosen * step[..., None] - groups).square() * share).sum(-1)
                if least is None:
                    best, least = step, error
                better = error < least
                best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best


def search_range(groups: Tensor, share: Tensor, top: int, *, zero: bool = False) -> tuple[Tensor, Tensor]:
    """(step, base), both [rows, groups] and real numbers, of values step · q + base with q from 0 to `top`.

    As `search_step`, with both refit at once. zero: base must be at most 0.
    """
    parts = [_search_range(groups[part], share, top, zero) for part in by_rows(groups)]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _search_range(groups, share, top, zero) -> tuple[Tensor, Tensor]:
    levels = torch.arange(top + 1, dtype=torch.float32)
    low, high = groups.amin(-1), groups.amax(-1)
    low = low.clamp(max=0) if zero else low
    high = torch.maximum(high, low)
    least = torch.full_like(low, torch.inf)
    best = (high - low) / top, low
    middle = (low + high) / 2
    for ratio in torch.linspace(1, SHRINK, CANDIDATES).tolist():
        base = (middle - (middle - low) * ratio).clamp(max=0) if zero else middle - (middle - low) * ratio
        step = (high - low) * ratio / top
        for refit in (False, True):
            codes = _codes(groups, step[..., None], base[..., None], levels)
            if refit:
                step, base = _line(groups, share, codes, step, base, zero)
                codes = _codes(groups, step[..., None], base[..., None], levels)
            error = ((codes * step[..., None] + base[..., None] - groups).square() * share).sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, step, best[0]), torch.where(better, base, best[1])
    return best


def _line(groups, share, codes, step, base, zero: bool) -> tuple[Tensor, Tensor]:
    """The weighted least squares line through (codes, groups); the old one where there is none that may be stored."""
    weight, mean_q, mean_w = share.sum(-1), (share * codes).sum(-1), (share * groups).sum(-1)
    of_qq, of_qw = (share * codes * codes).sum(-1), (share * codes * groups).sum(-1)
    slope = (weight * of_qw - mean_q * mean_w) / (weight * of_qq - mean_q * mean_q)
    start = (mean_w - slope * mean_q) / weight
    if zero:
        through = of_qw / of_qq  # the line through zero
        slope, start = torch.where(start > 0, through, slope), start.clamp(max=0)
    usable = torch.isfinite(slope) & torch.isfinite(start) & (slope > 0)
    return torch.where(usable, slope, step), torch.where(usable, start, base)


def nibbles(codes: Tensor) -> Tensor:
    """Bytes of codes of 4 bits [blocks, 32]: the first 16 in the low halves, the others in the high ones."""
    return codes[:, :16] | codes[:, 16:] << 4


def from_nibbles(data: Tensor) -> Tensor:
    """The inverse of `nibbles`."""
    return torch.cat([data & 15, data >> 4], 1)


def as_bytes(values: Tensor) -> Tensor:
    """Half-precision numbers as bytes, uint8 [..., 2]."""
    return values.to(torch.float16).contiguous().view(torch.uint8).view(*values.shape, 2)


def from_bytes(data: Tensor) -> Tensor:
    """The inverse of `as_bytes`, as float32."""
    return data.contiguous().view(torch.float16).float()[..., 0]
