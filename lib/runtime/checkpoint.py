"""From a checkpoint folder to packed weights, a matrix at a time: no dequantized copy, no torch, no transformers.

Reads what `export.compressed_tensors.save` wrote, and plain checkpoints in bfloat16, float16, float32 or float64. What
`sources.models.load` refuses is refused here too: a configuration is compared with every tensor.
"""

from pathlib import Path

import numpy as np

from lib import checkpoints, folders
from lib.decoding import ends, settings
from lib.runtime import architecture, fused
from lib.runtime.architecture import Architecture
from lib.runtime.rope_frequencies import Rotation, frequencies
from lib.runtime.tensors import Tensors, bfloat16
from lib.runtime.tokenizer import Tokenizer
from lib.runtime.weights import Weights, check_bits
from lib.sources import models

_KINDS = {"bfloat16": "BF16", "float16": "F16", "half": "F16"}  # of the others, a root is what it is in float32
_TABLE, _HEAD = "model.embed_tokens", "lm_head"


def load(folder: Path | str, *, embedding_bits: int | None = 8, adapter: str | None = None) -> Weights:
    """The packed weights of a model of a supported family: `Session` and `generate` take them as they take a model.

    folder: as for `sources.models.load`. embedding_bits: as for `pack_`. adapter: "ignore" loads the model without the
    adapter beside it; None refuses such a folder.
    Raises FileNotFoundError or ValueError for folders that are broken, unsafe or not supported, for tensors that are
    missing, unknown or not of the configuration's shape, and for other bits.
    """
    check_bits(embedding_bits)
    if adapter not in (None, "ignore"):
        raise ValueError(f"adapter={adapter!r}; None or 'ignore'; to merge one use sources.models.load, then pack_.")
    folder, _ = models.find(folder)
    return folders.unchanged(folder, lambda: _load(folder, embedding_bits, adapter))


def _load(folder: Path, embedding_bits: int | None, adapter: str | None) -> Weights:
    config = checkpoints.checkpoint(folder, adapter=adapter)
    wanted = architecture.read(config)
    tensors = Tensors(checkpoints.weights(folder), _quantization(folder, config))
    layers = [_block(tensors, wanted, f"model.layers.{index}.") for index in range(wanted.blocks)]
    table, head = _ends(tensors, wanted, embedding_bits)
    norm = tensors.floats("model.norm.weight", [wanted.hidden]) + np.float32(wanted.offset)
    if left := tensors.left():
        raise ValueError(
            f"{folder.name} holds {len(left)} tensors that its config.json has no place for, the first is {left[0]}; "
            "all must be used; get an undamaged copy of both."
        )
    rotations = [Rotation(frequencies(rotation, wanted.size)) for rotation in wanted.rotations.values()]
    return Weights(
        wanted, layers=layers, norm=norm, rotations=rotations, embedding=table, head=head,
        embedding_scale=_scale(config, wanted, tensors), stops=ends.of_folder(folder), tokenizer=Tokenizer(folder),
        generation_config=settings.of_folder(folder),
    )  # fmt: skip


def _block(tensors: Tensors, wanted: Architecture, block: str) -> dict:
    """The packed matrices, biases and norms of a block."""
    layer = {}
    for path, names in wanted.modules().items():
        shapes = [wanted.shape(name) for name in names]
        shape = sum(rows for rows, _ in shapes), shapes[0][1]
        bias = tensors.floats(f"{block}{path}.bias", [shape[0]]) if names[0] in wanted.biases else None
        layer |= fused.parts(wanted, path, tensors.matrix(block + path, shape), bias)
    for name, path in wanted.norms.items():
        layer[name] = tensors.floats(f"{block}{path}.weight", [wanted.width(name)]) + np.float32(wanted.offset)
    return layer


def _scale(config: dict, wanted: Architecture, tensors: Tensors) -> float:
    """The factor of the embeddings, rounded to the type of the model, as in transformers."""
    if not wanted.scaled:
        return 1.0
    plain = tensors.entries.get(f"{_TABLE}.weight")
    stated = config.get("dtype") or config.get("torch_dtype")
    kind = _KINDS.get(stated, stated) if stated else plain[2]["dtype"] if plain else "F32"
    root = np.float32(wanted.hidden**0.5)
    if kind == "BF16":
        return float((bfloat16(root[None]).astype(np.uint32) << 16).view(np.float32)[0])
    return float(np.float16(root)) if kind == "F16" else float(root)


def _ends(tensors: Tensors, wanted: Architecture, bits: int | None) -> tuple:
    """Embedding and head: one matrix where the configuration ties them, unless the checkpoint holds two that differ.

    A single stored matrix is used for both.
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
