"""Clip: shrinks each group's range so that its grid becomes finer; both ends are searched separately.

Source: Du et al., "BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via Self-Distillation", arXiv 2402.10631,
section 3.1 (asymmetric quantization and clipping): α*, β* = argmin ‖Q(w) X - w X‖ with w clipped to [α, β], α from the
smallest weight of the group up, β from the largest down. Three things differ. The error is weighed by the diagonal of
the Hessian H = 2 X Xᵀ, which equals the norm of the outputs if input channels are independent, so that every group can
be searched by itself. The two ends are searched in turns instead of in pairs, which finds equally good ranges in a
quarter of the time. And ranges down to 1/32 are tried: where one input is a thousand times larger than the others, only
its weight matters.
"""

import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.quantized.grid import AT_ONCE, TINY, Quantized, fitted, quantize, spanning
from lib.quantized.levels import to_level_
from lib.quantized.zero_points import typed
from lib.quantizers import calibrate
from lib.sources import texts

RATIOS = [*(part / 16 for part in range(16, 0, -1)), 1 / 32]  # ends tried, as shares of minimum and maximum


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int,
    group_size: int,
    levels: str = "integer",
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: windows of text, or token ids [count, length]. bits: 2 to 8. group_size: columns per grid, -1 for a
    row. levels: of the grids, see `quantized.levels`. state: folder that keeps finished blocks, so that a killed job
    resumes. Raises ValueError before the work when a layer can't take the grid.
    """
    settings = {"bits": bits, "group_size": group_size, "levels": levels}
    calibrate.check_layers(model, **settings)
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens)
    if state is not None:
        state = JobState(state, method="clip", **fingerprint(model, tokens, device), **settings)

    def quantize_layer(names: list[str], weight: Tensor, hessian: Tensor) -> Quantized:
        return clip(weight, hessian, **settings)

    return calibrate.sequential(model, tokens, quantize_layer, state=state, device=device)


@torch.no_grad()
def clip(weight: Tensor, hessian: Tensor, *, bits: int, group_size: int, levels: str = "integer") -> Quantized:
    """Round `weight` [rows, columns] on the clipped ranges that change its outputs least under `hessian`.

    hessian: [columns, columns], of which the diagonal is read.
    """
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // size, size)
    share = hessian.diagonal().float().reshape(1, columns // size, size)
    parts = [search(part, share, bits, levels) for part in groups.split(max(1, AT_ONCE // columns))]
    scale, zero = (torch.cat(part) for part in zip(*parts))
    zero = typed(zero, levels)
    return Quantized(quantize(weight, scale, zero, bits=bits), scale, zero, bits, size, levels=levels)


def search(groups: Tensor, share: Tensor, bits: int, levels: str = "integer") -> tuple[Tensor, Tensor]:
    """The best grid of each of `groups` [rows, groups, size]: scale (bfloat16) and zero point, both [rows, groups].

    Both ends move together at first, then the lower alone, then the upper alone; at last the scale is refit.
    """
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    alpha, beta, least = low, high, torch.full_like(low, float("inf"))
    for lower, upper in ((True, True), (True, False), (False, True)):
        start = alpha, beta
        for ratio in RATIOS:
            a = ratio * low if lower else start[0]
            b = ratio * high if upper else start[1]
            lost = error(groups, share, *grid(a, b, bits, levels), bits, levels)
            better = lost < least
            alpha, beta = torch.where(better, a, alpha), torch.where(better, b, beta)
            least = torch.where(better, lost, least)
    scale, zero = grid(alpha, beta, bits, levels)
    return refit(groups, share, scale, zero, bits, levels), zero


def refit(groups, share, scale: Tensor, zero: Tensor, bits: int, levels: str = "integer") -> Tensor:
    """The least-squares scale for the codes, Σ h c w / Σ h c² with c = q - z, where it gives a smaller error."""
    c = codes(groups, scale, zero, bits, levels).sub_(zero[..., None])
    weighted = c * share
    best = ((weighted * groups).sum(-1) / (weighted * c).sum(-1)).to(torch.bfloat16)
    best = torch.where((best.float() >= TINY) & torch.isfinite(best), best, scale)
    better = error(groups, share, best, zero, bits, levels) < error(groups, share, scale, zero, bits, levels)
    return torch.where(better, best, scale)


def grid(alpha: Tensor, beta: Tensor, bits: int, levels: str = "integer") -> tuple[Tensor, Tensor]:
    """Scale s = (β - α) / (2ᵇ - 1) and zero point z = -⌊α / s⌉ (equation 1), α ≤ 0 ≤ β; of other levels the nearest z.

    A group without spread gets a scale that nothing divides by zero with.
    """
    return spanning(alpha, beta, bits, False, levels)


def codes(groups: Tensor, scale: Tensor, zero: Tensor, bits: int, levels: str = "integer") -> Tensor:
    """q = clamp(⌊w / s⌉ + z, 0, 2ᵇ - 1), as floats; with halves rounded after z is added."""
    zero = zero[..., None]
    ratio = to_level_(groups / scale.float()[..., None], None if levels == "integer" else zero)
    return ratio.add_(zero).clamp_(0, 2**bits - 1)


def error(groups, share, scale: Tensor, zero: Tensor, bits: int, levels: str = "integer") -> Tensor:
    """Σ h (Q(w) - w)² over each group, [rows, groups]; weights outside the range are clipped."""
    values = codes(groups, scale, zero, bits, levels).sub_(zero[..., None]).mul_(scale.float()[..., None])
    return values.sub_(groups).square_().mul_(share).sum(-1)
