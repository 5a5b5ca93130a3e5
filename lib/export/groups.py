"""Config groups of compressed-tensors: the grids in config.json, one group per grid with its target modules.

A target is the name of a module, "re:" and a regular expression that names begin with, or a class of modules. Exact
names come before expressions and those before classes, so the most frequent grid is given to the class and the others
are exceptions. Layers of many blocks share one expression: a list of names would be as large as small matrices.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lib.export import packing
from lib.export.schemes import OWN, SHARED, SHIFTED, scheme
from lib.models.blocks import is_linear, is_quantized
from lib.quantized import pairs
from lib.quantized.grid import Quantized

_KINDS = {"Linear": nn.Linear, "Embedding": nn.Embedding}
_BLOCK = re.compile(r"(.*?\.)(\d+)\.(.*)")


def config(matrices: dict[str, Quantized], kinds: dict[str, list[str]]) -> dict | None:
    """The `quantization_config` of `matrices` by module name; None without any.

    kinds: names of all modules in the unquantized model by class, "Linear" and "Embedding".
    """
    if not matrices:
        return None
    grids = _grids(matrices)
    targets = {grid: [] for grid in grids}
    ignored = []
    for kind, names in kinds.items():
        found = {grid: [name for name in names if name in members] for grid, members in grids.items()}
        most = max(found, key=lambda grid: len(found[grid]))
        if not found[most]:
            continue
        targets[most].append(kind)
        for grid in targets.keys() - {most}:
            targets[grid] += patterns(found[grid])
        ignored += patterns([name for name in names if name not in matrices])
    groups = {
        f"group_{index}": {"targets": targets[grid], "weights": _weights(*grid)} for index, grid in enumerate(grids)
    }
    # transformers dequantizes with one grid only, and reads packed zero points only while it dequantizes
    once = {"dequantize": True} if len(grids) == 1 else {}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        **once,
    }


def patterns(names: list[str]) -> list[str]:
    """Targets that match `names` and no other layer: one for all layers that occur in the same blocks."""
    blocks, alone = defaultdict(list), []
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match:
            blocks[match[1], match[3]].append(match[2])
        else:
            alone.append(name)
    layers = defaultdict(list)
    for (path, layer), indices in blocks.items():
        layers[path, tuple(indices)].append(layer)
    made = [f"re:{path}{_either(indices)}.{_either(names)}$" for (path, indices), names in layers.items()]
    return alone + made if len(names) > 1 else names


def _either(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"({'|'.join(names)})"


def codebooks(matrices: dict[str, Quantized]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The key of each matrix' codebook, and the shared codebooks by key, which are stored once."""
    content = {name: _bytes(matrix.codebook) for name, matrix in matrices.items() if matrix.codebook is not None}
    uses = Counter(value for name, value in content.items() if matrices[name].levels != pairs.LEVELS)
    shared = {value: f"{SHARED}{index}" for index, value in enumerate(key for key in uses if uses[key] > 1)}
    place = {name: shared.get(value, OWN) for name, value in content.items()}
    place |= dict.fromkeys((name for name in content if matrices[name].levels == pairs.LEVELS), OWN)
    return place, {where: matrices[name].codebook for name, where in place.items() if where != OWN}


def unpack(tensors: dict[str, Tensor], config: dict, model: nn.Module) -> dict[str, Quantized]:
    """Take the packed tensors of `model`, still unquantized, out of `tensors`; returns the matrices by module name.

    Raises ValueError for tensors that are no target of `config`, and for grids that quantized layers can't hold.
    """
    from compressed_tensors.utils.match import match_targets  # loads slowly, only to read packed tensors

    schemes = {target: group for group in config.get("config_groups", {}).values() for target in group["targets"]}
    modules = {name: part for name, part in model.named_modules() if isinstance(part, tuple(_KINDS.values()))}
    shared = {key: tensors.pop(key) for key in list(tensors) if key.startswith(SHARED)}
    found = {}
    for name in [key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")]:
        matches = match_targets(name, modules[name], schemes) if name in modules else []
        if not matches:
            raise ValueError(
                f"{name} is packed, but it is no target in config.json, or no linear layer or embedding; "
                "export it again."
            )
        own = {key: tensors.pop(f"{name}.{key}") for key in packing.NAMES if f"{name}.{key}" in tensors}
        bits, size, symmetric, where, levels = scheme(schemes[matches[0]], name)
        codebook = None if where is None else own.pop(OWN, None) if where == OWN else shared.get(where)
        if where is not None:
            pairs.check_book(codebook, name) if levels == pairs.LEVELS else _check_codebook(codebook, bits, name)
        groups = modules[name].weight.shape[1] // size if size != -1 else 1
        grid = {"symmetric": symmetric, "codebook": codebook, "levels": levels}
        found[name] = packing.unpack(own, bits=bits, groups=groups, name=name, **grid)
    return found


def kinds(model: nn.Module) -> dict[str, list[str]]:
    """Names of the linear layers and embeddings of `model`, quantized or not, by the class they have unquantized."""
    linears = [name for name, part in model.named_modules() if is_linear(part)]
    both = [name for name, part in model.named_modules() if isinstance(part, nn.Embedding) or is_quantized(part)]
    return {"Linear": linears, "Embedding": [name for name in both if name not in linears]}


def _grids(matrices: dict[str, Quantized]) -> dict[tuple, list[str]]:
    """Names by (bits, group size, symmetric, place of the codebook, levels), where size -1 is one group a row.

    A row that is just one group long counts with the layers of that group size, if there are any.
    """
    sizes = {matrix.group_size for matrix in matrices.values() if matrix.group_size < matrix.codes.shape[1]}
    place, _ = codebooks(matrices)
    grids = defaultdict(list)
    for name, matrix in matrices.items():
        size = matrix.group_size if matrix.group_size in sizes else -1
        grids[matrix.bits, size, matrix.zero_point is None, place.get(name), matrix.levels].append(name)
    return dict(grids)


def _weights(bits, size, symmetric, codebook, levels):
    # types that readers of the convention don't know, so that they refuse what they would read as integers
    grid = {"num_bits": bits, "type": SHIFTED.get(levels, "int"), "symmetric": symmetric, "dynamic": False}
    if codebook is not None and levels != pairs.LEVELS:
        grid |= {"type": "codebook", "codebook": codebook}
    return grid | ({"strategy": "channel"} if size == -1 else {"strategy": "group", "group_size": size})


def _check_codebook(found: Tensor | None, bits: int, name: str) -> None:
    if found is None or found.dtype != torch.float32 or list(found.shape) != [2**bits]:
        shown = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise ValueError(
            f"the codebook of {name} is {shown}; {bits} bits ask for float32 [{2**bits}]; copy the folder again."
        )


def _bytes(codebook: Tensor) -> bytes:
    return codebook.detach().cpu().contiguous().numpy().tobytes()
