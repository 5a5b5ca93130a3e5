"""What adapters learned gets into the model: into 16 bits, back onto low-bit grids, or beside them at 8 bits.

    into_16_bits_    W + s B A, a plain layer again: exact up to one rounding, as large as an uncompressed model
    into_low_bits_   the same, quantized again with calibration on grids as the model had them: not a byte more, but
                     what was learned must survive a second rounding
    beside_          codes stay, and B A stays beside them in 8 bits: nothing is lost, and it costs its bytes

Scales that were trained alone (`ways`, "scales") need none of it: they are merged by construction.
Each takes the model that the adapters were made for, changes it in place and returns it.
"""

import torch
from torch import nn

from lib.quantized.linear import QuantLinear
from lib.quantized.low_rank_linear import LowRankLinear
from lib.quantizers import by_name, calibrate
from lib.trainers.low_rank import Adapters


@torch.no_grad()
def into_16_bits_(model: nn.Module, adapters: Adapters) -> nn.Module:
    """Add the adapters to the weights; quantized layers with one become plain, in the type of the model.

    Raises ValueError for adapters of another model, for ones that hold NaN, and where a sum is not finite.
    """
    _check(model, adapters)
    return _add_(model, adapters)


def _add_(model: nn.Module, adapters: Adapters) -> nn.Module:
    weights = {name: model.get_submodule(name).weight for name in adapters.parts}
    merged = {name: part.merged(weights[name]).to(model.dtype) for name, part in adapters.parts.items()}
    for name, weight in merged.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} with its adapter is not finite in {model.dtype}; load the model in float32.")
    for name, weight in merged.items():
        layer = model.get_submodule(name)
        if isinstance(layer, QuantLinear):
            model.set_submodule(name, _plain(layer, weight))
        else:
            layer.weight.copy_(weight)
    return model


def into_low_bits_(
    model: nn.Module, adapters: Adapters, calibration=None, *, method: str = "gptq", **options
) -> nn.Module:
    """Add the adapters to the weights and quantize these again, by `method`, on grids as the model had them.

    calibration: windows of text or token ids [count, length], for methods that take some: text like what was learned.
    options: further ones of the method. Raises ValueError, before anything is changed, for models that aren't quantized
    alike throughout, and what `into_16_bits_` and the method raise.
    """
    grid = grid_of(model)
    _check(model, adapters)
    quantize_ = by_name(method)
    with torch.no_grad():
        _add_(model, adapters)
        for name, layer in calibrate.layers(model).items():  # those without an adapter are rounded anew too
            if name not in adapters.parts:
                model.set_submodule(name, _plain(layer, layer.weight.to(model.dtype)))
    quantize_(model, calibration, **grid, **options)
    return model


def beside_(model: nn.Module, adapters: Adapters) -> nn.Module:
    """Keep the adapters beside the layers, in 8 bits with a scale a row; `export.low_rank` saves such a model."""
    _check(model, adapters)
    for name, part in adapters.parts.items():
        layer = model.get_submodule(name)
        factor = None
        if part.magnitude is not None:
            whole = part._replace(magnitude=None).merged(layer.weight)
            factor = part.magnitude.float() / whole.norm(dim=1)
        model.set_submodule(name, LowRankLinear.of(layer, part.a, part.b.float() * part.scaling, factor))
    return model


def grid_of(model: nn.Module) -> dict:
    """The options by which all layers inside the blocks were quantized: bits, group_size and levels or symmetric.

    Raises ValueError where they differ, or are not quantized on affine grids.
    """
    layers = calibrate.layers(model)
    found = {name: layer.quantized for name, layer in layers.items() if isinstance(layer, QuantLinear)}
    whole = all(each.group_size == each.codes.shape[1] for each in found.values())
    kinds = {
        (each.bits, -1 if whole else each.group_size, each.zero_point is None, each.levels, each.codebook is None)
        for each in found.values()
    }
    if len(found) < len(layers) or len(kinds) != 1 or not next(iter(kinds))[-1]:
        raise ValueError(
            f"{len(found)} of {len(layers)} layers are quantized, on {len(kinds)} kinds of grids; one kind of affine "
            "grid for all is needed to put adapters back into low bits; keep them beside (merging.beside_), or merge "
            "into 16 bits and quantize anew."
        )
    bits, size, symmetric, levels, _ = kinds.pop()
    more = {"levels": levels} if levels != "integer" else {"symmetric": True} if symmetric else {}
    return {"bits": bits, "group_size": size, **more}


def _plain(layer: QuantLinear, weight: torch.Tensor) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if layer.bias is not None:
        made.bias = layer.bias
    return made


def _check(model: nn.Module, adapters: Adapters) -> None:
    adapters.check(model)
    if not adapters.parts:
        raise ValueError("the adapters are empty until the context that trains them has ended; merge after it.")
    for name, part in adapters.parts.items():
        if not all(each.isfinite().all() for each in part if isinstance(each, torch.Tensor)):
            raise ValueError(f"the adapter of {name} holds NaN or infinite values; train again with a lower rate.")
