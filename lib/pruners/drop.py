"""Removes given blocks from a model, which leaves an ordinary, smaller model."""

import copy
import numbers
from collections.abc import Iterable, Iterator

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from lib.models import blocks as parts
from lib.pruners.importance.passes import check_decoder

_LAYER_LISTS = ("layer", "block")  # a config's list with one entry per block has one of these words in its name
_PASSING = {"training", "gradient_checkpointing", "layer_idx"}  # attributes that don't tell blocks apart


def drop_blocks_(model: nn.Module, indices: Iterable[int]) -> nn.Module:
    """Remove the blocks `indices` (counted from 0) from `model`, in place; returns `model`.

    The result matches its new config: `num_hidden_layers` and lists with one entry per block (`layer_types`) are
    shortened, the attention layers are renumbered for the cache, tied weights stay tied. It saves, loads and generates
    like any other model.

    Raises ValueError, before anything is changed, for indices that are repeated, out of range or all blocks there
    are, for models that are no decoders, and for those whose config can't describe the remaining blocks (every
    second one has experts, say).
    """
    smaller, changes, dropped = _planned(model, indices)
    layers, config = parts.blocks(model), parts.config(model)
    for name, value in changes.items():
        setattr(config, name, value)
    for index in sorted(dropped, reverse=True):
        del layers[index]
    for index, block in enumerate(layers):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    # attributes that the decoder derives from its list of blocks, such as whether any has sliding attention
    vars(parts.decoder(model)).update(_differing(parts.decoder(smaller), parts.decoder(model)))
    return model


def check(model: nn.Module, indices: Iterable[int]) -> None:
    """Raise the ValueError that `drop_blocks_` would raise; nothing is changed."""
    _planned(model, indices)


def without(model: nn.Module, indices: Iterable[int]) -> nn.Module:
    """A second model that lacks the blocks `indices`; `model` stays whole, and the two share all weights.

    Takes milliseconds and almost no memory: for scoring and measuring several depths of one model. A change to the
    weights of one model changes those of the other, so train and quantize a separate copy.
    """
    tensors = [
        tensor
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        if isinstance(tensor, Tensor)
    ]
    shared = [*tensors, getattr(model, "tokenizer", None)]
    return drop_blocks_(copy.deepcopy(model, {id(each): each for each in shared}), indices)


def _planned(model, indices) -> tuple[nn.Module, dict, set[int]]:
    """(the smaller model as its config describes it, what changes in the config, what to drop), all checked."""
    check_decoder(model)
    parts.refuse_adapters(model)
    layers = parts.blocks(model)
    dropped = _checked(indices, len(layers))
    kept = [index for index in range(len(layers)) if index not in dropped]
    changes = _shortened(parts.config(model), kept)
    smaller = _described(model, changes)
    _compare(parts.blocks(smaller), layers, kept)
    return smaller, changes, dropped


def _checked(indices, count) -> set[int]:
    given = list(indices)
    wrong = [i for i in given if isinstance(i, bool) or not isinstance(i, numbers.Integral) or not 0 <= i < count]
    repeated = sorted({index for index in given if given.count(index) > 1})
    if wrong or repeated or len(given) >= count:
        problem = f"{wrong} are no blocks" if wrong else f"{repeated} are repeated" if repeated else "none would stay"
        raise ValueError(
            f"blocks {given} to remove: {problem}; the model has blocks 0 to {count - 1}; "
            f"give each once, at most {count - 1} of them."
        )
    return set(given)


def _shortened(config, kept: list[int]) -> dict:
    """The settings of `config` that change when only the blocks `kept` remain."""
    count = config.num_hidden_layers
    lists = {
        name: [value[index] for index in kept]
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == count and any(word in name for word in _LAYER_LISTS)
    }
    return {"num_hidden_layers": len(kept), **lists}


def _described(model, changes: dict) -> nn.Module:
    """The model that `model.config` with `changes` describes, without memory for its weights."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config.get_text_config(), name, value)
    config.dtype = config.get_text_config().dtype = model.dtype  # saving leaves its name, which not all take
    try:
        config.validate()
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"no configuration of {type(model).__name__} describes the blocks that would stay ({reason}); a "
            "configuration that transformers accepts is needed; remove other blocks."
        ) from error
    with torch.device("meta"):
        return type(model)(config)


def _compare(described: nn.ModuleList, layers: nn.ModuleList, kept: list[int]) -> None:
    """Raise ValueError when a block does not match the new config at its new position."""
    for place, index in enumerate(kept):
        difference = next(_differences(layers[index], described[place]), None)
        if difference:
            raise ValueError(
                f"block {index} would become block {place}, where {type(layers[index]).__name__} has another kind "
                f"({difference}); supported are blocks that are all alike, or told apart by a list in the config "
                "(layer_types); drop a whole period of the pattern, or the last blocks."
            )


def _differences(block: nn.Module, described: nn.Module) -> Iterator[str]:
    """Differences between `block` and the described one, outermost first; a quantized layer counts as its original."""
    wanted = dict(described.named_modules())
    for name, module in block.named_modules():
        if name not in wanted:
            yield f"no {name}"
        elif not parts.is_quantized(module):
            if type(module) is not type(wanted[name]):
                yield f"{name} is a {type(wanted[name]).__name__}, here a {type(module).__name__}"
            for key, value in _differing(wanted[name], module).items():
                yield f"{name}.{key} is {value}, here {vars(module)[key]}"


def _differing(wanted: nn.Module, module: nn.Module) -> dict:
    """Plain settings (numbers, names, flags) of `wanted` that `module` has with another value."""
    return {
        key: value
        for key, value in vars(wanted).items()
        if isinstance(value, bool | int | float | str) and key not in _PASSING and vars(module).get(key, value) != value
    }
