"""What OpenVINO's files hold, read as XML and bytes alone, and whether it is what a model's export should hold."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from lib.export import onnx_codes, stored_tensors
from lib.models import blocks
from lib.quantized.grid import Quantized

_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8, "i64": torch.int64}
_TINY = torch.finfo(torch.float32).tiny


class Stored(NamedTuple):
    """A constant: its type, shape, and its place in the file of tensors."""

    kind: str
    shape: list[int]
    offset: int
    size: int


def constants(file: Path | str) -> dict[str, Stored]:
    """The constants of the graph by name."""
    found = {}
    for layer in ElementTree.parse(file).getroot().iter("layer"):
        if layer.get("type") == "Const":
            data = layer.find("data")
            shape = [int(each) for each in data.get("shape").split(",") if each.strip()]
            place = int(data.get("offset")), int(data.get("size"))
            found[layer.get("name")] = Stored(data.get("element_type"), shape, *place)
    return found


def types(file: Path | str) -> dict[str, int]:
    """How many matrices have codes of each type, and how many operators there are of each kind."""
    codes = Counter(f"codes of {each.kind}" for name, each in constants(file).items() if name.endswith(".codes"))
    operators = Counter(layer.get("type") for layer in ElementTree.parse(file).getroot().iter("layer"))
    return dict(sorted(codes.items())) | dict(sorted(operators.items()))


def compare(file: Path | str, model: nn.Module) -> dict:
    """The weights of `file` beside those of `model`: as `gguf_contents.compare`."""
    found, data = constants(file), Path(file).with_suffix(".bin").read_bytes()
    result = {"tensors": 0, "exact": 0, "largest": 0.0, "where": None, "missing": [], "left_over": []}
    matrices, replaced = stored_tensors.stored(model)
    head = blocks.path_of(model, blocks.head(model))
    wanted = dict(matrices)
    for key, value in model.state_dict().items():
        if key.endswith(".weight") and value.ndim == 2 and key.rpartition(".")[0] not in replaced:
            wanted[key.removesuffix(".weight")] = value
    for name, value in wanted.items():
        if name == head and blocks.alike(model):
            continue
        result["tensors"] += 1
        ours = value.dense() if isinstance(value, Quantized) else value.float()
        theirs = _weights(found, data, name, isinstance(value, Quantized))
        if theirs is None or theirs.numel() != ours.numel():
            result["missing"].append(name)
            continue
        apart = float((theirs.reshape(ours.shape) - ours).abs().max() / ours.abs().max().clamp(min=_TINY))
        result["exact"] += torch.equal(theirs.reshape(ours.shape), ours)
        if apart > result["largest"]:
            result |= {"largest": apart, "where": name}
    known = {f"{name}.codes" for name in wanted} | {f"{head}.codes"}
    result["left_over"] = sorted(name for name in found if name.endswith(".codes") and name not in known)
    return result


def _weights(found: dict[str, Stored], data: bytes, name: str, quantized: bool) -> Tensor | None:
    if not quantized or f"{name}.codes" not in found:
        place = found.get(f"{name}.weight")
        return None if place is None else _values(place, data).float()
    parts = [found.get(f"{name}.{part}") for part in ("codes", "zeros", "scales")]
    if None in parts:
        return None
    codes, zeros, scales = (_values(each, data).float() for each in parts)
    return (codes - zeros) * scales


def _values(place: Stored, data: bytes) -> Tensor:
    raw = torch.frombuffer(bytearray(data[place.offset : place.offset + place.size]), dtype=torch.uint8)
    if place.kind == "u4":
        count = torch.Size(place.shape).numel()
        return onnx_codes.unpacked(raw, 4, count).reshape(place.shape)
    return raw.view(_TYPES[place.kind]).reshape(place.shape)
