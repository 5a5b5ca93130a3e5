"""Quantized models as checkpoints in the compressed-tensors convention, format `pack-quantized`.

`save` writes a folder that plain `AutoModelForCausalLM.from_pretrained` opens and that vLLM and others know;
`load` gives the model back with its integer codes (`QuantLinear`).

What plain transformers (5.23, with compressed-tensors 0.20) opens: all of 2 to 8 bits, symmetric or not, any group
size, as long as every layer has the same grid. It dequantizes while loading ("dequantize": true in config.json): the
weights are then equal bit for bit to those that `QuantLinear` computes in the checkpoint's own dtype. Layers with
different grids are written with a config group for each grid; plain transformers opens those when all are symmetric,
and refuses asymmetric ones (it expects unpacked zero points). `load` reads all of them.
"""

from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

from lib import files
from lib.export import packing
from lib.quantizers.grid import BITS
from lib.quantizers.linear import QuantLinear


def save(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model`, whose quantized layers are `QuantLinear`, and `tokenizer` to `folder`; returns `folder`.

    The folder holds safetensors (sharded above 5 GB), config.json with its `quantization_config`, the tokenizer and
    `manifest.json` with the SHA-256 of every file. It is complete or absent, and replaces an older one at the end.
    Raises ValueError for a model without quantized layers, PermissionError or OSError (before the work) when the
    folder can't be written or its disk is too full.
    """
    from lib.export import plain

    if not layers(model):
        raise ValueError(
            f"{type(model).__name__} has no quantized layers; they are what this format is for; "
            "quantize it first (quantizers.rtn, quantizers.gptq), or write it with export.plain.save."
        )
    return plain.write(mark(model), tokenizer, folder, kind="pack-quantized")


def load(folder: Path | str):
    """Read what `save` wrote; returns (model in eval mode with `QuantLinear` layers, tokenizer).

    Raises FileNotFoundError or ValueError when the folder is broken, unsafe, or quantized in another way.
    """
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from lib.sources import checks

    files.recover(folder)
    config = checks.checkpoint(folder).get("quantization_config") or {}
    if config.get("format") != "pack-quantized":
        raise ValueError(
            f"{checks.place(folder)} has format {config.get('format')!r}; only pack-quantized is read here; "
            "load it with sources.models.load."
        )
    tensors = {}
    for path in checks.weights(folder):
        tensors |= load_file(path)
    model = _skeleton(folder)
    _fill(model, _quantized(model, tensors, config), tensors)
    model.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return mark(model).eval(), model.tokenizer


def mark(model: nn.Module) -> nn.Module:
    """Make plain `model.save_pretrained(folder)` write the packed form too; quantizers call it, `model` is returned.

    Without it transformers would write the raw codes, which nothing finds again: the reloaded layers would be random.
    """
    from lib.export.pretrained import Packed

    model.hf_quantizer = Packed()
    return model


def layers(model: nn.Module) -> dict[str, QuantLinear]:
    """The quantized layers of `model` by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def packed_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """`model.state_dict()` with the packed tensors in the place of each quantized layer's codes and grid."""
    state = dict(model.state_dict())
    for name, layer in layers(model).items():
        for key in ("codes", "scale", "zero_point"):
            state.pop(f"{name}.{key}", None)
        packed = packing.pack(layer.quantized, model.dtype)
        state |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
    return state


def quantization_config(model: nn.Module) -> dict | None:
    """The `quantization_config` of config.json: one config group per grid; None without quantized layers."""
    grids = _grids(layers(model))
    if not grids:
        return None
    plain = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    groups = {
        f"group_{index}": {"targets": ["Linear"] if len(grids) == 1 else names, "weights": _weights(*grid)}
        for index, (grid, names) in enumerate(grids.items())
    }
    # transformers dequantizes with one grid only, and reads packed zero points only while it dequantizes
    once = {"dequantize": True} if len(grids) == 1 else {}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": plain,
        **once,
    }


def _grids(found: dict[str, QuantLinear]) -> dict[tuple[int, int, bool], list[str]]:
    """Layer names by (bits, group size, symmetric), where -1 is one group a row.

    A row that is just one group long counts with the layers of that group size, if there are any.
    """
    sizes = {layer.group_size for layer in found.values() if layer.group_size < layer.in_features}
    grids = defaultdict(list)
    for name, layer in found.items():
        size = layer.group_size if layer.group_size in sizes else -1
        grids[layer.bits, size, layer.zero_point is None].append(name)
    return dict(grids)


def _weights(bits, size, symmetric):
    grid = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False}
    return grid | ({"strategy": "channel"} if size == -1 else {"strategy": "group", "group_size": size})


def _skeleton(folder):
    """The model of config.json with its memory allocated but not filled: nothing random may survive in it."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    del config.quantization_config
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config)
    if (Path(folder) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _quantized(model, tensors, config) -> dict:
    """Take the packed tensors out of `tensors`; returns their matrices by layer name."""
    from compressed_tensors.utils.match import match_targets

    schemes = {target: group for group in config.get("config_groups", {}).values() for target in group["targets"]}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {}
    for name in [key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")]:
        matches = match_targets(name, linears[name], schemes) if name in linears else []
        if not matches:
            raise ValueError(
                f"{name} is packed, but it is no target in config.json, or no linear layer; export it again."
            )
        own = {key: tensors.pop(f"{name}.{key}") for key in packing.NAMES if f"{name}.{key}" in tensors}
        bits, size, symmetric = _scheme(schemes[matches[0]], name)
        groups = linears[name].in_features // size if size != -1 else 1
        found[name] = packing.unpack(own, bits=bits, groups=groups, symmetric=symmetric, name=name)
    return found


def _scheme(group: dict, name: str) -> tuple[int, int, bool]:
    """Bits, group size and symmetry of a config group; refuses grids that `QuantLinear` doesn't have."""
    weights = group.get("weights") or {}
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    integer = weights.get("type", "int") == "int" and not weights.get("dynamic") and bits in BITS
    if not integer or strategy not in ("group", "channel") or group.get("input_activations"):
        raise ValueError(
            f"{name} has {bits} bits of type {weights.get('type')!r} and strategy {strategy!r}; integer weights of "
            "2 to 8 bits by group or channel are read, with activations as they are; choose another checkpoint."
        )
    return bits, weights["group_size"] if strategy == "group" else -1, weights.get("symmetric", True)


def _fill(model, quantized, tensors):
    """Put the quantized layers and all other tensors into the skeleton; what is tied may be missing, nothing else."""
    for name, matrix in quantized.items():
        bias = model.get_submodule(name).bias
        if tuple(matrix.codes.shape) != (model.get_submodule(name).out_features, model.get_submodule(name).in_features):
            raise ValueError(f"{name} is {list(matrix.codes.shape)}, not as config.json says; copy the folder again.")
        model.set_submodule(name, QuantLinear(matrix, bias))
    own = {f"{name}.{key}" for name in quantized for key in ("codes", "scale", "zero_point")}
    result = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    missing = set(result.missing_keys) - own - set(model.all_tied_weights_keys)
    if missing or result.unexpected_keys:
        raise ValueError(
            f"the checkpoint lacks {sorted(missing)} and has {result.unexpected_keys} too many; its tensors must be "
            "those of its config.json; export it again."
        )
