"""HQQ: choose each group's zero point so that most weights err little and a few may err much; no calibration.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs 2023. Symbols are
theirs: W the weights, s the scale (fixed to the range of the group), z the zero point, φ(e) = Σ |e|^p with p < 1, and
W_e the part of the error that counts as an outlier. φ is split by half-quadratics,

    min over z and W_e of  φ(W_e) + β/2 ‖W_e - (W - s (q - z))‖²,   q = clamp(round(W/s + z)),

into two sub-problems with closed forms. Errors are counted in steps of the grid here, so that β means the same for
every group. Our zero points are integers or halves: the real-valued optimum is rounded at the end, and the scale refit.
"""

import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.quantized.grid import AT_ONCE, HUGE, TINY, Quantized, fitted, quantize
from lib.quantized.levels import check as check_levels
from lib.quantized.levels import nearest
from lib.quantized.zero_points import typed
from lib.quantizers import calibrate, layerwise

NORM = 0.7  # p
BETA, KAPPA = 10.0, 1.01  # β of the first step, and the factor by which it grows with each
STEPS = 20
LEAST = 1e-6  # smaller errors are set to this: |e|^(p-1) is infinite at zero


@torch.no_grad()
def quantize_(
    model: nn.Module,
    calibration=None,
    *,
    bits: int,
    group_size: int,
    levels: str = "integer",
    norm: float = NORM,
    steps: int = STEPS,
    state=None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: not used, part of the common signature. bits: 2 to 8. group_size: columns per grid, -1 for a row.
    levels: to whose zero points z is rounded, "integer" or "half". norm: p, above 0; below 1 it allows large errors of
    few weights. steps: alternations, at most. state: folder that keeps finished blocks, so that a killed job resumes.
    """
    calibrate.check_layers(model, bits=bits, group_size=group_size, levels=levels)
    _check_levels(levels)
    settings = {"bits": bits, "group_size": group_size, "levels": levels, "norm": norm, "steps": steps}
    if state is not None:
        state = JobState(state, method="hqq", **fingerprint(model), **settings)
    return layerwise.replace_(model, lambda weight: hqq(weight, **settings), state=state)


@torch.no_grad()
def hqq(
    weight: Tensor,
    *,
    bits: int,
    group_size: int,
    levels: str = "integer",
    norm: float = NORM,
    steps: int = STEPS,
) -> Quantized:
    """Round `weight` [rows, columns] to grids with half-quadratic zero points, rounded to `levels`, and refit scales.

    Raises ValueError for weights that are not finite, a norm that is not positive and fewer than 1 step.
    """
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    _check_levels(levels)
    groups = weight.float().reshape(len(weight), -1, size)
    parts = []
    for part in groups.split(max(1, AT_ONCE // weight.shape[1])):
        scale, zero = optimize(part, bits=bits, norm=norm, steps=steps)
        zero = nearest(zero, bits, levels)
        parts.append((refit(part, scale, zero, bits=bits), typed(zero, levels)))
    scale, zero = (torch.cat(part) for part in zip(*parts, strict=True))
    return Quantized(quantize(weight, scale, zero, bits=bits), scale, zero, bits, size, levels=levels)


def optimize(groups: Tensor, *, bits: int, norm: float = NORM, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Scale and real-valued zero point, float32 [rows, groups], of `groups` [rows, groups, columns].

    A group stops when a step does not lower its φ, and keeps its best zero point. The start is minimum and maximum
    with a real-valued zero; the range includes zero, as in `grid.choose`, so that an integer zero point can follow.
    """
    _check(groups, norm, steps)
    top, shape = 2**bits - 1, groups.shape[:-1]
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = high / top - low / top  # halves first: the difference may overflow where neither of them does
    scale = torch.where(scale >= TINY, scale, torch.ones_like(scale)).clamp(max=HUGE)
    ratio = (groups / scale[..., None]).flatten(0, -2)
    zero = (-low / scale).flatten()
    best, least = zero.clone(), torch.full_like(zero, torch.inf)
    running, beta = torch.arange(len(zero), device=zero.device), BETA
    for _ in range(steps):
        error = ratio - (codes(ratio, zero, top) - zero[:, None])
        phi = error.abs().clamp_(min=LEAST).pow_(norm).sum(-1)
        better = phi < least[running]
        if not better.any():
            break
        running, ratio, zero, error = (part[better] for part in (running, ratio, zero, error))
        least[running], best[running] = phi[better], zero
        zero = next_zero(ratio, zero, shrink(error, beta, norm), top)
        beta *= KAPPA
    return scale, best.reshape(shape)


def shrink(error: Tensor, beta: float, norm: float) -> Tensor:
    """Sub-problem 1: W_e = sign(e) · max(|e| - |e|^(p-1) / β, 0), the generalized soft threshold; e in steps."""
    size = error.abs().clamp(min=LEAST)
    return (size - size.pow(norm - 1) / beta).clamp_(min=0).copysign_(error)


def next_zero(ratio: Tensor, zero: Tensor, outliers: Tensor, top: int) -> Tensor:
    """Sub-problem 2: with the codes q that `zero` gives, z = mean of q - (W - W_e) / s; all in steps."""
    return (codes(ratio, zero, top) - ratio + outliers).mean(-1)


def codes(ratio: Tensor, zero: Tensor, top: int) -> Tensor:
    """q = clamp(round(W/s + z)) of `ratio` = W/s [..., columns] and `zero` [...]."""
    return (ratio + zero[..., None]).round_().clamp_(0, top)


def refit(groups: Tensor, scale: Tensor, zero: Tensor, *, bits: int) -> Tensor:
    """The scale (bfloat16) that minimizes ‖W - s (q - z)‖² for the codes of `scale` and `zero`."""
    centred = codes(groups / scale[..., None], zero, 2**bits - 1) - zero[..., None]
    fitted = ((centred * groups).sum(-1) / centred.square().sum(-1)).to(torch.bfloat16)
    usable = (fitted.float() >= TINY) & torch.isfinite(fitted)
    return torch.where(usable, fitted, scale.clamp(max=HUGE).to(torch.bfloat16))


def _check_levels(levels: str) -> None:
    check_levels(levels)
    if levels == "balanced":
        raise ValueError(
            "levels='balanced' have no zero points, which are all that HQQ chooses; levels 'integer' and 'half' have; "
            "use one of them, or rtn with candidates=8."
        )


def _check(groups: Tensor, norm: float, steps: int) -> None:
    if not torch.isfinite(groups).all():
        raise ValueError("weight holds NaN or infinite values; a grid needs finite ones; check the checkpoint.")
    if not norm > 0 or steps < 1:
        raise ValueError(f"norm={norm} and steps={steps}; a norm above 0 and 1 step or more are allowed; try 0.7, 20.")
