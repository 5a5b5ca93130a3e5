"""The tensors and settings that represent a model's quantized modules on disk."""

from torch import nn

from lib.export import groups, packing
from lib.models import blocks
from lib.quantized.grid import Quantized


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The quantized modules of `model` (`QuantLinear`, `QuantEmbedding`) by dotted name."""
    return {name: module for name, module in model.named_modules() if blocks.is_quantized(module)}


def packed_state(model: nn.Module, found: dict[str, Quantized] | None = None, pack=packing.pack) -> dict:
    """`model.state_dict()` with the stored tensors of each matrix in the place of the module that holds it.

    found: matrices of modules that aren't quantized yet, by name. pack: makes the stored tensors of a matrix.
    """
    found, replaced = stored(model, found)
    state = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if key.rpartition(".")[0] not in replaced or key.endswith(".bias")
    }
    places, shared = groups.codebooks(found)
    for name, matrix in found.items():
        parts = pack(matrix, model.dtype)
        if places.get(name) == groups.OWN:
            parts[groups.OWN] = matrix.codebook
        state |= {f"{name}.{key}": tensor for key, tensor in parts.items()}
    return state | shared


def quantization_config(model: nn.Module, found: dict[str, Quantized] | None = None) -> dict | None:
    """The `quantization_config` of config.json for the same matrices as `packed_state`; None without any."""
    return groups.config(stored(model, found)[0], groups.kinds(model))


def stored(model: nn.Module, found: dict[str, Quantized] | None = None) -> tuple[dict[str, Quantized], set[str]]:
    """The matrices to store by name, and the names of all modules that they stand for.

    The head of a tied model isn't stored: it is its embedding again.
    """
    found = {name: module.quantized for name, module in layers(model).items()} | (found or {})
    found = {name: found[name] for name, _ in model.named_modules() if name in found}
    table, head = (
        None if part is None else blocks.path_of(model, part)
        for part in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    both = table in found and head in found
    once = both and blocks.equal(found[table], found[head])
    return {name: matrix for name, matrix in found.items() if not (once and name == head)}, set(found)
