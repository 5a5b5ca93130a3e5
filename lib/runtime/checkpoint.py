"""From a checkpoint folder to packed weights, a matrix at a time: no dequantized copy, no torch, no transformers.

Reads what `export.compressed_tensors.save` wrote, and plain checkpoints in bfloat16, float16, float32 or float64. What
`sources.models.load` refuses is refused here too: a configuration is compared with every tensor.
"""

from pathlib import Path

from lib.decoding import ends, settings
from lib.runtime import architecture
from lib.runtime.architecture import Architecture
from lib.runtime.families import LINEARS, NORMS
from lib.runtime.rotary import Rotation, frequencies
from lib.runtime.tensors import Tensors
from lib.runtime.tokenizer import Tokenizer
from lib.runtime.weights import Weights, check_bits

_TABLE, _HEAD = "model.embed_tokens", "lm_head"


def load(folder: Path | str, *, embedding_bits: int | None = 8, adapter: str | None = None) -> Weights:
    """The packed weights of a model of a supported family: `Session` and `generate` take them as they take a model.

    folder: as for `sources.models.load`. embedding_bits: as for `pack_`. adapter: "ignore" takes the model beside an
    adapter_config.json as it lies there; None refuses it.
    Raises FileNotFoundError or ValueError for folders that are broken, unsafe or not supported, for tensors that are
    missing, unknown or not of the configuration's shape, and for other bits.
    """
    from lib import folders
    from lib.sources import models

    check_bits(embedding_bits)
    if adapter not in (None, "ignore"):
        raise ValueError(f"adapter={adapter!r}; None or 'ignore'; to merge one use sources.models.load, then pack_.")
    folder, _ = models.find(folder)
    return folders.unchanged(folder, lambda: _load(folder, embedding_bits, adapter))


def _load(folder: Path, embedding_bits: int | None, adapter: str | None) -> Weights:
    from lib import checkpoints

    config = checkpoints.checkpoint(folder, adapter=adapter)
    wanted = architecture.read(config)
    tensors = Tensors(checkpoints.weights(folder), _quantization(folder, config))
    layers = [_block(tensors, wanted, f"model.layers.{index}.") for index in range(wanted.blocks)]
    table, head = _ends(tensors, wanted, embedding_bits)
    norm = tensors.floats("model.norm.weight", [wanted.hidden])
    if left := tensors.left():
        raise ValueError(
            f"{folder.name} holds {len(left)} tensors that its config.json has no place for, the first is {left[0]}; "
            "all must be used; get an undamaged copy of both."
        )
    rotations = [Rotation(frequencies(rotation, wanted.size)) for rotation in wanted.rotations]
    return Weights(
        wanted, layers=layers, norm=norm, rotations=rotations, embedding=table, head=head,
        stops=ends.of_folder(folder), tokenizer=Tokenizer(folder), generation_config=settings.of_folder(folder),
    )  # fmt: skip


def _block(tensors: Tensors, wanted: Architecture, block: str) -> dict:
    """The packed matrices, biases and norms of a block."""
    layer = {}
    for name, path in LINEARS.items():
        shape = wanted.shape(name)
        bias = tensors.floats(f"{block}{path}.bias", [shape[0]]) if name in wanted.biases else None
        layer[name] = tensors.matrix(block + path, shape), bias
    return layer | {name: tensors.floats(f"{block}{NORMS[name]}.weight", [wanted.width(name)]) for name in wanted.norms}


def _ends(tensors: Tensors, wanted: Architecture, bits: int | None) -> tuple:
    """Embedding and head: one matrix where the configuration ties them, unless the checkpoint holds two that differ.

    Where it holds one of them alone, that is both.
    """
    shape, (first, last) = (wanted.vocabulary, wanted.hidden), (_TABLE, _HEAD)
    stored = [name for name in (first, last) if tensors.has_matrix(name)]
    if wanted.tied and len(stored) == 1:
        one = tensors.matrix(stored[0], shape, bits, "Embedding" if stored == [first] else "Linear")
        return one, one
    plain = all(f"{name}.weight" in tensors for name in (first, last))
    table = tensors.matrix(first, shape, bits, "Embedding")
    if wanted.tied and plain and tensors.equal(f"{first}.weight", f"{last}.weight", shape):
        return table, table
    return table, tensors.matrix(last, shape, bits)


def _quantization(folder: Path, config: dict) -> dict | None:
    """The quantization_config of a checkpoint, None of a plain one; refuses those of other conventions."""
    found = config.get("quantization_config")
    method, kind = (found or {}).get("quant_method"), (found or {}).get("format")
    if found and (method, kind) != ("compressed-tensors", "pack-quantized"):
        raise ValueError(
            f"{folder.name} is quantized as {method!r}, format {kind!r}; plain checkpoints and pack-quantized ones of "
            "compressed-tensors are read; choose the original model."
        )
    return found
