"""What a GGUF file holds, read by the `gguf` package alone, and whether it is what a model's export should hold."""

from pathlib import Path

import gguf
import torch
from torch import Tensor, nn

from lib.export import gguf as writing
from lib.export import gguf_metadata
from lib.quantized.grid import Quantized

_WIDTHS = {"qwen3": 128, "gemma3": 256}  # columns of a head that plain transformers takes for granted
_TINY = torch.finfo(torch.float32).tiny


def tensors(file: Path | str) -> dict[str, Tensor]:
    """Every tensor of `file` by its name there, dequantized to float32 by the `gguf` package."""
    found = {}
    for each in gguf.GGUFReader(file).tensors:
        shape = tuple(int(size) for size in reversed(each.shape))
        dense = gguf.quants.dequantize(each.data, each.tensor_type)
        found[each.name] = torch.from_numpy(dense.copy()).reshape(shape).float()
    return found


def types(file: Path | str) -> dict[str, int]:
    """How many tensors have each type."""
    kinds = [each.tensor_type.name for each in gguf.GGUFReader(file).tensors]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def fields(file: Path | str) -> dict:
    """The metadata by key, without long lists."""
    found = gguf.GGUFReader(file).fields.items()
    return {key: field.contents() for key, field in found if not key.startswith("GGUF.") and len(field.data) == 1}


def compare(file: Path | str, model: nn.Module) -> dict:
    """The weights of `file` beside those of `model`.

    {"tensors", "exact": how many are equal to the last bit, "largest": difference as a share of its tensor's largest
    weight, "where" it is, "missing" and "left_over": names}
    """
    stored, rename = tensors(file), gguf_metadata.names(model)
    result = {"tensors": 0, "exact": 0, "largest": 0.0, "where": None, "missing": []}
    for name, value in writing.values(model):
        result["tensors"] += 1
        wanted = value.dense() if isinstance(value, Quantized) else value.float()
        wanted = gguf_metadata.vector(model, name, wanted) if wanted.ndim == 1 else wanted
        found = stored.pop(rename(name), None)
        if found is None or found.shape != wanted.shape:
            result["missing"].append(rename(name))
            continue
        apart = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=_TINY))
        result["exact"] += torch.equal(found, wanted)
        if apart > result["largest"]:
            result |= {"largest": apart, "where": rename(name)}
    return {**result, "left_over": sorted(stored)}


def unread(file: Path | str) -> str | None:
    """What `file` says that plain transformers (5.23) does not read; None if it reads all of it."""
    said, names = fields(file), [each.name for each in gguf.GGUFReader(file).tensors]
    kind = said["general.architecture"]

    def get(key, otherwise=None):
        return said.get(f"{kind}.{key}", otherwise)

    if "rope_freqs.weight" in names:
        return "Llama 3's rotation (the tensor rope_freqs)"
    if get("attention.key_length") != _WIDTHS.get(kind, get("attention.key_length")):
        return f"the width of a head, and takes {_WIDTHS[kind]} for granted"
    if kind == "llama" and any(name.endswith(".bias") for name in names):
        return "biases"
    if get("rope.scaling.type") is not None:
        return "a scaled rotation"
    if get("attention.sliding_window_pattern") is not None:
        return "the order of windows"
    if get("rope.freq_base_swa", 10000.0) != 10000.0:
        return "the rotation inside of windows"
    if get("rope.dimension_count") != get("attention.key_length"):
        return "a rotation of some of a head's columns"
    return None
