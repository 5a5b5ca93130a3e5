"""What a GGUF file holds, read by the `gguf` package alone, and whether it is what a model's export should hold."""

from pathlib import Path

import torch
from torch import Tensor, nn

from lib.export import gguf_metadata, gguf_tensors
from lib.quantized.grid import Quantized

_WIDTHS = {"qwen3": 128, "gemma3": 256}  # columns of a head that plain transformers takes for granted
_UNKNOWN = ("Q2_0", "MXFP4")  # types that its reader refuses
_TINY = torch.finfo(torch.float32).tiny


def tensors(file: Path | str) -> dict[str, Tensor]:
    """Every tensor of `file` by its name there, dequantized to float32, by the `gguf` package where it can."""
    found = {}
    for each in gguf_tensors.reader(file).tensors:
        shape = tuple(int(size) for size in reversed(each.shape))
        found[each.name] = gguf_tensors.dequantized(each.data, each.tensor_type.name).reshape(shape).float()
    return found


def entries(file: Path | str) -> list:
    """The tensors as the package describes them: names, types, shapes, bytes."""
    return gguf_tensors.reader(file).tensors


def types(file: Path | str) -> dict[str, int]:
    """How many tensors have each type."""
    kinds = [each.tensor_type.name for each in gguf_tensors.reader(file).tensors]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def fields(file: Path | str) -> dict:
    """The metadata by key, without long lists."""
    found = gguf_tensors.reader(file).fields.items()
    return {key: field.contents() for key, field in found if not key.startswith("GGUF.") and len(field.data) == 1}


def compare(file: Path | str, model: nn.Module) -> dict:
    """The weights of `file` beside those of `model`.

    {"tensors", "exact": how many are equal to the last bit, "largest": difference as a share of its tensor's largest
    weight, "where" it is, "missing" and "left_over": names}
    """
    stored, rename = tensors(file), gguf_metadata.names(model)
    result = {"tensors": 0, "exact": 0, "largest": 0.0, "where": None, "missing": []}
    for name, value in gguf_tensors.values(model):
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
    said, names = fields(file), [each.name for each in gguf_tensors.reader(file).tensors]
    if found := [name for name in types(file) if name in _UNKNOWN]:
        return f"the type {found[0]}"
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
