"""Applies rotations to the weights of linear layers and norms."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

AT_ONCE = 1 << 22  # weights of one step of a row-wise product, in float64: 32 MiB


class LayerRotation(NamedTuple):
    """Rotation of a linear layer y = W (g ⊙ n + β) + b, where g ⊙ n + β is the output of `norm`.

        W becomes Oᵀ W diag(g) I and b becomes Oᵀ (b + W β): `inner` I rotates its inputs, `outer` O its outputs.
    Matrices smaller than the layer are blocks of block-diagonal ones, a block for each head.
    """

    norm: nn.Module | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None


def added(norm: nn.Module) -> int:
    """The constant that `norm` adds to its weight: 1 in Gemma's norms, 0 in others."""
    return int(_answer(norm, torch.linspace(1, 2, norm.weight.numel()), weight=0.0) > 0.1)


def factors(norm: nn.Module) -> Tensor | None:
    """The factors of `norm` for its channels, float64 [channels]; None for one without weights (OLMo's)."""
    return None if getattr(norm, "weight", None) is None else norm.weight.double() + added(norm)


def subtracts_mean(norm: nn.Module, width: int | None = None) -> bool:
    """Whether `norm` subtracts the mean first, as LayerNorm does and RMSNorm does not.

    width: of its inputs, for norms without weights.
    """
    return _answer(norm, torch.ones(width or norm.weight.numel()), weight=1.0) < 0.1


def neutral_(norm: nn.Module) -> None:
    """Let `norm` multiply by 1 and add nothing."""
    if factors(norm) is not None:
        norm.weight.fill_(1 - added(norm))
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()


def _answer(norm: nn.Module, inputs: Tensor, *, weight: float) -> float:
    """The largest output of `norm` for `inputs` if all its weights were `weight` and its bias zero."""
    parts = {name: torch.zeros_like(part) for name, part in norm.named_parameters()}
    if "weight" in parts:
        parts["weight"] = torch.full_like(norm.weight, weight)
    inputs = inputs.to(next(iter(parts.values()), inputs))
    return torch.func.functional_call(norm, parts, (inputs[None],)).abs().max().item()


def turn_(layer: nn.Linear | nn.Embedding, turn: LayerRotation) -> None:
    """Apply `turn` to `layer` in place, a few rows at a time where rows do not mix."""
    (norm, inner, outer), offset = turn, getattr(turn.norm, "bias", None)
    factor = None if norm is None else factors(norm)
    step = len(layer.weight) if outer is not None else max(1, AT_ONCE // layer.weight.shape[1])
    for start in range(0, len(layer.weight), step):
        rows = slice(start, start + step)
        weight, bias = layer.weight[rows].double(), getattr(layer, "bias", None)
        if bias is not None:
            shifted = bias[rows].double() + (0 if offset is None else weight @ offset.double())
            bias[rows] = (shifted if outer is None else times(shifted, outer)).to(bias.dtype)
        weight = weight if factor is None else weight * factor
        weight = weight if inner is None else times(weight, inner)
        weight = weight if outer is None else times(weight.T, outer).T
        layer.weight[rows] = weight.to(layer.weight.dtype)


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """`rows` [..., n · size] times the block-diagonal matrix of n copies of `matrix` [size, size]."""
    return (rows.reshape(*rows.shape[:-1], -1, len(matrix)) @ matrix.to(rows.device)).reshape(rows.shape)
