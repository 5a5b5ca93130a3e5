"""Affine grids: a weight w is stored as an integer code q, and w ≈ scale · (q - zero_point).

Zero points are whole codes, halves, or the same centre for all groups (`levels`). A grid belongs to one group:
`group_size` neighbouring columns of one row (or the whole row, `group_size=-1`).
Everything here is a pure function on tensors; `Quantized` is the one structure that packing, kernels and
exporters read.

Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295, equations 4 to 8.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.quantized import levels as kinds
from lib.quantized import pairs, zero_points

BITS = range(2, 9)
PARTS = ("codes", "scale", "zero_point", "codebook")  # the tensors of a `Quantized`
SHRINK = 0.35  # the narrowest range that the search tries, as a share of min/max
TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.bfloat16).max  # of a scale
AT_ONCE = 1 << 18  # elements of one step of the search: enough for every core, and small enough for their caches


class Quantized(NamedTuple):
    """A quantized matrix of shape [rows, columns].

    codes: uint8 [rows, columns], each below 2**bits. scale: bfloat16 [rows, groups].
    zero_point: [rows, groups], uint8, or float16 where `levels` are not "integer"; None for a symmetric grid, whose
    zero is the middle code 2**(bits-1). group_size: columns per group. codebook: float32 [2**bits], the unscaled levels
    of the codes on grids whose levels are not evenly spaced; None for the affine grids of this file. levels: which zero
    points are possible, one of `levels.LEVELS`; "pairs" for those of `pairs`, with books in place of zero points.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    group_size: int
    codebook: Tensor | None = None
    levels: str = "integer"

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dequantized values, [rows, columns], computed in float32 and rounded once to `dtype`."""
        if self.levels == pairs.LEVELS:
            found = pairs.levels(self.codes, self.zero_point, self.codebook, torch.float32)
            return found.mul_(self.scale.float()[..., None]).reshape(self.codes.shape).to(dtype)
        if self.codebook is None:
            return dequantize(self.codes, self.scale, self.zero_point, bits=self.bits, dtype=dtype)
        levels = self.codebook[self.codes.long()].reshape(*self.scale.shape, -1)
        return levels.mul_(self.scale.float()[..., None]).reshape(self.codes.shape).to(dtype)


def check(columns: int, *, bits: int, group_size: int, name: str = "the matrix") -> int:
    """Return the columns per group; raise ValueError when `bits` or `group_size` do not fit `columns`."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS:
        raise ValueError(
            f"bits={bits!r} for {name}; a grid has 2 to 8 bits; choose one of {', '.join(map(str, BITS))}."
        )
    if group_size == -1:
        return columns
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1 or columns % group_size:
        divisors = [d for d in range(16, columns + 1) if columns % d == 0]
        allowed = ", ".join(map(str, divisors[:12])) or str(columns)
        raise ValueError(
            f"group_size={group_size!r} does not divide {columns} columns of {name}; "
            f"choose one of {allowed}, or -1 for one group a row."
        )
    return group_size


def fitted(columns: int, *, bits: int, group_size: int) -> int:
    """Return the columns per group as `check`; of a matrix narrower than a group, such as a head's, all of them.

    `calibrate.check_layers` says which matrices of a model may be so narrow.
    """
    wider = isinstance(group_size, int) and group_size > columns
    return check(columns, bits=bits, group_size=-1 if wider else group_size)


def check_candidates(candidates: int) -> None:
    """Raise ValueError when `candidates` is no number of ranges to try."""
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
        raise ValueError(
            f"candidates={candidates!r} ranges to try for each group; whole numbers from 1 (minimum and maximum) on "
            "are allowed; 8 find what there is to find."
        )


def check_finite(model: nn.Module) -> None:
    """Raise ValueError, with its name, when a parameter of `model` (a norm's too) holds NaN or infinite values.

    So it does for matrices with numbers so large that their grid would stand for infinity.
    """
    for name, parameter in model.named_parameters():
        largest = _largest(parameter)
        if not largest < float("inf"):
            raise ValueError(f"{name} holds NaN or infinite values; a grid needs finite ones; check the checkpoint.")
        if parameter.ndim > 1 and parameter.is_floating_point():
            check_size(name, parameter, largest)


def check_size(name: str, weight: Tensor, largest: float | None = None) -> None:
    """Raise ValueError for numbers (the `largest`, if it is known) above half of what the type of `weight` holds.

    Rounding to a grid may go beyond the largest number of a group, by half a step: a third of it at 2 bits.
    """
    largest = _largest(weight) if largest is None else largest
    most = min(torch.finfo(weight.dtype).max, torch.finfo(torch.float32).max) / 2
    if largest > most:
        kind = str(weight.dtype).removeprefix("torch.")
        remedy = "load it as float32" if weight.dtype == torch.float16 else "check the checkpoint"
        raise ValueError(
            f"{name} holds {largest:.4g}; up to {most:.4g} can be rounded to grids, whose values must be finite in "
            f"{kind}; {remedy}."
        )


def _largest(weight: Tensor) -> float:
    """The largest size of a number in `weight`, NaN where one is; 0 of none."""
    return float(torch.stack(weight.detach().aminmax()).abs().amax()) if weight.numel() else 0.0


def choose(
    weight: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    importance: Tensor | None = None,
    candidates: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """Choose scale [rows, groups] (bfloat16) and zero point (of `Quantized`'s type) for `weight` [rows, columns].

    With `candidates=1` the range is each group's minimum and maximum. With more, that many ranges between the full
    one and `SHRINK` of it are tried, the scale of each is refit to its codes by least squares, and the grid with the
    least squared error wins, weighted by `importance` [columns] (the diagonal of the Hessian; None weighs all columns
    alike). The range always includes zero. With refitting, 8 ranges give a smaller error than 64 without. With
    `levels="half"` each range is tried with the zero points half a code beside its own too: all ranges have one and the
    same, that of minimum and maximum, and on a grid that fine it is the best one less often.
    """
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    check_candidates(candidates)
    kinds.check(levels, symmetric)
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinite values; a grid needs finite ones; check the checkpoint.")
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // size, size)
    share = torch.ones(columns, device=weight.device) if importance is None else importance.float()
    share = share.reshape(1, columns // size, size)
    step = max(1, AT_ONCE // columns)
    parts = [_choose(part, share, bits, symmetric, levels, candidates) for part in groups.split(step)]
    scale, zero = (torch.cat(part) for part in zip(*parts, strict=True))
    return scale, None if symmetric else zero_points.typed(zero, levels)


def _choose(groups, share, bits: int, symmetric: bool, levels: str, candidates: int) -> tuple[Tensor, Tensor]:
    """Grids of `groups` [rows, groups, size]: scale (bfloat16) and zero point (float), both [rows, groups]."""
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale, zero = spanning(low, high, bits, symmetric, levels)
    if candidates == 1:
        return scale, zero
    least = _error(groups, share, scale, zero, bits, levels)
    for ratio in torch.linspace(1, SHRINK, candidates).tolist():
        first, middle = spanning(low * ratio, high * ratio, bits, symmetric, levels)
        for beside in (0.0, -0.5, 0.5) if levels == "half" else (0.0,):
            other = kinds.nearest(middle + beside, bits, levels) if beside else middle
            step = _refit(groups, share, first, other, bits, levels)
            error = _error(groups, share, step, other, bits, levels)
            better = error < least
            least = torch.where(better, error, least)
            scale, zero = torch.where(better, step, scale), torch.where(better, other, zero)
    return scale, zero


def _refit(groups: Tensor, share: Tensor, scale: Tensor, zero: Tensor, bits: int, levels: str) -> Tensor:
    """The scale that minimizes the weighted squared error for the codes that `scale` gives: Σ h c w / Σ h c²."""
    codes = _codes(groups, scale, zero, bits, levels).sub_(zero[..., None])
    weighted = codes * share
    refit = ((weighted * groups).sum(-1) / (weighted * codes).sum(-1)).to(torch.bfloat16)
    return torch.where((refit.float() >= TINY) & torch.isfinite(refit), refit, scale)


def spanning(low: Tensor, high: Tensor, bits: int, symmetric: bool, levels: str) -> tuple[Tensor, Tensor]:
    """The grid that spans [low, high]; groups without spread get a scale that nothing divides by zero with."""
    top, (centre, moves) = 2**bits - 1, kinds.stored(bits, levels, symmetric)
    # halves first: high - low may overflow where neither of them does; below a middle code there is one code more
    scale = high / top - low / top if moves else torch.maximum(high / (top - centre), -low / centre)
    # without a value for zero, a group without spread has values next to it
    scale = usable(scale, 1.0 if centre == int(centre) else TINY)
    if not moves:
        return scale, torch.full_like(low, centre)
    zero = kinds.nearest(-low / scale.float(), bits, levels)
    return (scale if levels == "integer" else usable(kinds.widened(scale.float(), zero, low, high, bits))), zero


def usable(scale: Tensor, otherwise: float = 1.0) -> Tensor:
    """`scale` in bfloat16 and finite; `otherwise` where it is too small to divide by."""
    scale = scale.to(torch.bfloat16)
    return torch.where(scale.float() >= TINY, scale, torch.full_like(scale, otherwise)).clamp(max=HUGE)


def _codes(groups: Tensor, scale: Tensor, zero: Tensor, bits: int, levels: str) -> Tensor:
    zero = zero[..., None]
    ratio = kinds.to_level_(groups / scale.float()[..., None], None if levels == "integer" else zero)
    return ratio.add_(zero).clamp_(0, 2**bits - 1)


def _error(groups: Tensor, share: Tensor, scale: Tensor, zero: Tensor, bits: int, levels: str) -> Tensor:
    values = _codes(groups, scale, zero, bits, levels).sub_(zero[..., None]).mul_(scale.float()[..., None])
    return values.sub_(groups).square_().mul_(share).sum(-1)


def quantize(weight: Tensor, scale: Tensor, zero_point: Tensor | None, *, bits: int) -> Tensor:
    """Codes (uint8, shape of `weight` [rows, columns]) nearest to `weight` on the grid."""
    step, zero = _spread(weight.shape, scale, zero_point, bits)
    halves = zero if zero_point is not None and zero_point.is_floating_point() else None
    ratio = weight.float().reshape(step.shape[0], step.shape[1], -1) / step
    codes = kinds.to_level_(ratio, halves).add(zero)
    return codes.clamp(0, 2**bits - 1).to(torch.uint8).reshape(weight.shape)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, *, bits: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The values scale · (codes - zero_point), shape of `codes`, computed in float32 and rounded once to `dtype`."""
    step, zero = _spread(codes.shape, scale, zero_point, bits)
    values = codes.float().reshape(step.shape[0], step.shape[1], -1).sub_(zero).mul_(step)
    return values.reshape(codes.shape).to(dtype)


def _spread(shape: torch.Size, scale: Tensor, zero_point: Tensor | None, bits: int) -> tuple[Tensor, Tensor | int]:
    rows, groups = scale.shape
    if len(shape) != 2 or shape[0] != rows or shape[1] % groups:
        raise ValueError(
            f"scale of shape {tuple(scale.shape)} does not fit a matrix of shape {tuple(shape)}; "
            "it needs one row a row, and groups that divide the columns; pass the scale that `choose` gave this matrix."
        )
    zero = 2 ** (bits - 1) if zero_point is None else zero_point.float()[..., None]
    return scale.float()[..., None], zero
