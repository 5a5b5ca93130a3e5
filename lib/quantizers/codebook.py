"""Codebooks: levels that are not evenly spaced, w ≈ scale · level[code], with the quantiles of a normal distribution.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314, section 3 (equation 4) and
appendix E (the 16 levels of NF4). The weights of a group, divided by the largest of them, look like normal numbers;
levels at the quantiles of that distribution are each used by about equally many weights.
"""

import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.quantized.grid import AT_ONCE, HUGE, SHRINK, TINY, Quantized, check, check_candidates, fitted
from lib.quantizers import calibrate, layerwise
from lib.sources import texts

FEW = 16  # up to so many levels, comparing with each boundary is faster than a binary search


def quantize_(
    model: nn.Module,
    calibration=None,
    *,
    bits: int,
    group_size: int,
    candidates: int = 8,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: windows of text, or token ids [count, length]; None takes the largest weight of each group as its
    scale, as the paper does. bits: 2 to 8. group_size: columns per scale, -1 for a row. candidates: with a
    calibration, scales tried per group, for the least error weighted by the inputs. state: folder that keeps finished
    blocks, so that a killed job resumes.
    """
    calibrate.check_layers(model, bits=bits, group_size=group_size, candidates=candidates)
    settings = {"bits": bits, "group_size": group_size}
    if calibration is None:
        if state is not None:
            state = JobState(state, method="codebook", **fingerprint(model), **settings)
        return layerwise.replace_(model, lambda weight: codebook(weight, **settings), state=state)
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens)
    settings["candidates"] = candidates
    if state is not None:
        state = JobState(state, method="codebook", **fingerprint(model, tokens, device), **settings)

    def quantize_layer(names: list[str], weight: Tensor, hessian: Tensor) -> Quantized:
        return codebook(weight, importance=hessian.diagonal(), **settings)

    return calibrate.sequential(model, tokens, quantize_layer, state=state, device=device)


@torch.no_grad()
def codebook(
    weight: Tensor, *, bits: int, group_size: int, importance: Tensor | None = None, candidates: int = 1
) -> Quantized:
    """Round `weight` [rows, columns] to the nearest levels; the arguments of `choose`."""
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    scale = choose(weight, bits=bits, group_size=size, importance=importance, candidates=candidates)
    return Quantized(quantize(weight, scale, bits=bits), scale, None, bits, size, levels(bits).to(weight.device))


def levels(bits: int) -> Tensor:
    """The 2**bits levels of NormalFloat, float32, ascending from -1 to 1, with an exact zero.

    The negative half holds 2**(bits-1) quantiles of the standard normal distribution and the positive half one more
    (both with the zero), evenly spaced in probability. The outermost probability δ would be 0, an infinite level; it
    is half of the mean of 1/(2**bits - 1) and 1/2**bits (appendix E: bitsandbytes' offset 0.9677083 = 1 - δ).
    """
    check(1, bits=bits, group_size=-1)
    count = 2 ** (bits - 1)
    tail = (1 / (4 * count - 2) + 1 / (4 * count)) / 2
    below = _normal_quantile(torch.linspace(tail, 0.5, count, dtype=torch.float64))
    above = _normal_quantile(torch.linspace(0.5, 1 - tail, count + 1, dtype=torch.float64))
    return (torch.cat([below, above[1:]]) / above[-1]).float()


def _normal_quantile(probability: Tensor) -> Tensor:
    return 2**0.5 * torch.erfinv(2 * probability - 1)


def choose(
    weight: Tensor, *, bits: int, group_size: int, importance: Tensor | None = None, candidates: int = 1
) -> Tensor:
    """Choose the scale [rows, groups] (bfloat16) for `weight` [rows, columns].

    With `candidates=1` it is each group's largest magnitude. With more, that many scales between it and `grid.SHRINK`
    of it are tried, each is refit to its codes by least squares, and the one with the least squared error wins,
    weighted by `importance` [columns] (the diagonal of the Hessian; None weighs all columns alike).
    """
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    check_candidates(candidates)
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinite values; a grid needs finite ones; check the checkpoint.")
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // size, size)
    share = torch.ones(columns, device=weight.device) if importance is None else importance.float()
    share, values = share.reshape(1, columns // size, size), levels(bits).to(weight.device)
    parts = groups.split(max(1, AT_ONCE // columns))
    return torch.cat([_choose(part, share, values, candidates) for part in parts])


def _choose(groups: Tensor, share: Tensor, values: Tensor, candidates: int) -> Tensor:
    largest = groups.abs().amax(-1)
    best = _usable(largest, torch.ones_like(largest))
    if candidates == 1:
        return best
    least = _error(groups, share, best, values)
    for ratio in torch.linspace(1, SHRINK, candidates).tolist():
        scale = _usable(largest * ratio, best.float())
        scale = _refit(groups, share, scale, values)
        error = _error(groups, share, scale, values)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, scale, best)
    return best


def _refit(groups: Tensor, share: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """The scale that minimizes Σ h (w - s v)² for the levels v that `scale` gives: Σ h v w / Σ h v²."""
    nearest = _nearest(groups, scale, values)
    weighted = nearest * share
    return _usable((weighted * groups).sum(-1) / (weighted * nearest).sum(-1), scale.float())


def _error(groups: Tensor, share: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    found = _nearest(groups, scale, values).mul_(scale.float()[..., None])
    return found.sub_(groups).square_().mul_(share).sum(-1)


def _usable(scale: Tensor, otherwise: Tensor) -> Tensor:
    """`scale` in bfloat16, and `otherwise` where it is too small to divide by, or not a number."""
    small = scale.to(torch.bfloat16).float()
    return torch.where(small >= TINY, small, otherwise).clamp(max=HUGE).to(torch.bfloat16)


def _nearest(groups: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    codes = _codes(groups / scale.float()[..., None], values)
    return values.index_select(0, codes.int().flatten()).reshape(groups.shape)


def _codes(ratio: Tensor, values: Tensor) -> Tensor:
    """Index (uint8) of the level nearest to each `ratio`: how many of the midpoints between levels lie below it."""
    midpoints = (values[1:] + values[:-1]) / 2
    if len(values) > FEW:
        return torch.bucketize(ratio, midpoints).to(torch.uint8)
    codes = torch.zeros(ratio.shape, dtype=torch.uint8, device=ratio.device)
    for midpoint in midpoints.tolist():
        codes += ratio > midpoint
    return codes


def quantize(weight: Tensor, scale: Tensor, *, bits: int) -> Tensor:
    """Codes (uint8, shape of `weight` [rows, columns]) of the levels nearest to weight / scale [rows, groups]."""
    rows, groups = scale.shape
    if weight.ndim != 2 or len(weight) != rows or weight.shape[1] % groups:
        raise ValueError(
            f"scale of shape {tuple(scale.shape)} does not fit a matrix of shape {tuple(weight.shape)}; "
            "it needs one row a row, and groups that divide the columns; pass the scale that `choose` gave this matrix."
        )
    ratio = weight.float().reshape(rows, groups, -1) / scale.float()[..., None]
    return _codes(ratio, levels(bits).to(weight.device)).reshape(weight.shape)
