"""Incoherence: how evenly numbers are spread, and what an uneven spread costs when weights are rounded.

Kurtosis and peak say how far the largest numbers stand out; for normally distributed ones they are 3 and about
√(2 ln n). `factors` splits the output error of a rounded layer into factors, which shows what a rotation changes.
Source of the notion: Chee et al., "QuIP: 2-Bit Quantization of Large Language Models With
Guarantees", arXiv 2307.13304, definition 1 (their μ is `peak`, for a matrix of any shape).
"""

import torch
from torch import Tensor

from lib.metrics.score import Score, exact


def kurtosis(values: Tensor) -> float:
    """Fourth moment about the mean over the squared variance: 3 for a normal distribution, more with outliers.

    Raises ValueError for values that are all equal, or not finite.
    """
    values = values.detach().double().flatten()
    centred = values - values.mean() if len(values) else values
    variance = centred.square().mean()
    if not variance > 0 or not torch.isfinite(variance):
        raise ValueError("values are all equal, none, or not finite; a kurtosis needs finite ones that differ.")
    return (centred.div(variance.sqrt()).pow(4).mean()).item()


def peak(values: Tensor) -> float:
    """Largest magnitude over the root mean square: the range that a grid must span, relative to a typical value.

    Raises ValueError for values that are all zero, or not finite.
    """
    values = values.detach().double()
    typical = values.square().mean().sqrt()
    if not typical > 0 or not torch.isfinite(typical):
        raise ValueError("values are all zero, none, or not finite; a peak needs finite ones that are not.")
    return (values.abs().amax() / typical).item()


def factors(weight: Tensor, other: Tensor, hessian: Tensor) -> dict[str, Score]:
    """The relative output error of `other` [rows, columns] in the place of `weight`, as a product of three factors.

    tr(Δ H Δᵀ) / tr(W H Wᵀ) = rounding · gain · exposure, Δ = other - weight, with
    rounding = ‖Δ‖² / ‖W‖²: the error of the weights.
    gain = ‖W‖² tr(H) / (columns · tr(W H Wᵀ)): the output power of white noise on the weights, relative to that of the
    weights themselves. A rotation of columns does not change it; scaling columns (folding a norm) does.
    exposure = columns · tr(Δ H Δᵀ) / (‖Δ‖² tr(H)): the output power of the rounding error relative to that of white
    noise of the same size; below 1 where the error lies in directions in which the inputs are small.
    """
    weight, hessian = weight.detach().double(), hessian.double()
    change, columns, power = other.detach().double() - weight, weight.shape[1], hessian.trace()
    lost = ((change @ hessian) * change).sum()
    signal = ((weight @ hessian) * weight).sum()
    noise, size = change.square().sum(), weight.square().sum()
    if not (signal > 0 and noise > 0):
        raise ValueError("the layer answers zero, or nothing was rounded; factors need both; take another layer.")
    found = {
        "rounding": noise / size,
        "gain": size * power / (columns * signal),
        "exposure": columns * lost / (noise * power),
        "output_error": lost / signal,
    }
    return {name: exact(value.item(), "ratio", higher_is_better=False) for name, value in found.items()}
