"""Adapters that begin with the error of quantization: what codes could not hold, as far as a low rank can.

Of the quantized W̃ of a weight W the best B A of rank r is the first r singular values of W - W̃ (Eckart and Young).
LoftQ (Li et al., arXiv 2310.08659, algorithm 1) alternates this with quantizing W - B A. Here the codes are those of
any method and stay: with `rounds` above 1 the layer's own grid is filled anew, by rounding to nearest.
"""

import torch
from torch import Tensor, nn

from lib.models import blocks
from lib.quantized import grid
from lib.quantized.linear import QuantLinear

_EXTRA, _POWERS = 8, 4  # of the randomized decomposition (Halko et al., arXiv 0909.4061)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights inside the blocks, by layer name: to be kept while `model` is quantized in place."""
    path = blocks.path_of_blocks(model)
    layers = blocks.linears(blocks.blocks(model))
    return {f"{path}.{name}": layer.weight.detach().clone() for name, layer in layers.items()}


@torch.no_grad()
def start(
    model: nn.Module, originals: dict[str, Tensor], *, rank: int, rounds: int = 1, first: int = 0, seed: int = 0
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of each quantized layer, for `low_rank.attached_(start=...)`: B A is nearest to original - quantized.

    originals: from `weights`, before the quantization. rounds: above 1, codes and grids of `model` change too. Raises
    ValueError for a model without quantized layers, and for originals of another.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)}
    path = blocks.path_of_blocks(model)
    inside = {name: layer for name, layer in layers.items() if name.startswith(f"{path}.")}
    inside = {name: layer for name, layer in inside.items() if int(name[len(path) + 1 :].split(".")[0]) >= first}
    if rank < 1 or rounds < 1 or not inside:
        raise ValueError(
            f"rank={rank}, rounds={rounds} and {len(inside)} quantized layers; each is 1 or more; quantize the model "
            "first, and give a rank."
        )
    wrong = [
        name for name, layer in inside.items() if _shape(originals, name) != (layer.out_features, layer.in_features)
    ]
    if wrong:
        raise ValueError(
            f"originals hold no weight of the shape of {wrong[0]}; those of the model before it was quantized are "
            "needed; keep `weights(model)` before."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: _of(layer, originals[name].float(), rank, rounds) for name, layer in inside.items()}


def _shape(originals: dict[str, Tensor], name: str) -> tuple | None:
    return tuple(originals[name].shape) if name in originals else None


def _of(layer: QuantLinear, original: Tensor, rank: int, rounds: int) -> tuple[Tensor, Tensor]:
    a, b = _nearest(original - layer.weight, rank)
    for _ in range(rounds - 1):
        _round_(layer, original - b @ a)
        a, b = _nearest(original - layer.weight, rank)
    return a, b


def _nearest(error: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A [rank, columns], B [rows, rank]) whose product is nearest to `error`, its size shared evenly."""
    u, size, v = torch.svd_lowrank(error, min(rank + _EXTRA, *error.shape), _POWERS)
    root = size[:rank].sqrt()
    more = (0, 0, 0, rank - len(root))  # a matrix of fewer rows or columns needs no more
    pad = torch.nn.functional.pad
    return pad(root[:, None] * v[:, :rank].T, more), pad((u[:, :rank] * root).T, more).T


def _round_(layer: QuantLinear, weight: Tensor) -> None:
    """Choose the grid of `layer` anew for `weight`, as it was: bits, groups, symmetric or not, levels."""
    old = layer.quantized
    if old.codebook is not None:
        raise ValueError("layers with a codebook can't be rounded anew; give rounds=1, or quantize on affine grids.")
    how = {"bits": old.bits, "group_size": old.group_size, "levels": old.levels, "symmetric": old.zero_point is None}
    scale, zero = grid.choose(weight, **how)
    layer.codes = grid.quantize(weight, scale, zero, bits=old.bits)
    layer.scale, layer.zero_point = scale, zero
    layer.forget()


def kept(model: nn.Module, originals: dict[str, Tensor], start: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The share of the squared quantization error that adapters begun with `start` take away, 0 to 1."""
    left = whole = 0.0
    for name, (a, b) in start.items():
        error = originals[name].float() - model.get_submodule(name).weight
        whole += float(error.square().sum())
        left += float((error - b @ a).square().sum())
    return 1 - left / whole
