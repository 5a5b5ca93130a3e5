"""What an ONNX file holds, read by the `onnx` package alone, and whether it is what a model's export should hold."""

import math
from collections import Counter
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from lib.export import onnx_codes, stored_tensors
from lib.models import blocks
from lib.quantized.grid import Quantized

PARTS = ("codes", "scales", "zeros")
_TINY = torch.finfo(torch.float32).tiny


def types(file: Path | str) -> dict[str, int]:
    """How many operators of quantized matrices there are by bits and accuracy level, and of all others by name."""
    found = Counter()
    for node in onnx.load(file, load_external_data=False).graph.node:
        said = {each.name: each.i for each in node.attribute}
        if "bits" in said and node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            level = f", level {said.get('accuracy_level', 0)}" if node.op_type == "MatMulNBits" else ""
            found[f"{node.op_type} ({said['bits']} bits{level})"] += 1
        else:
            found[node.op_type] += 1
    return dict(sorted(found.items()))


def compare(file: Path | str, model: nn.Module) -> dict:
    """The weights of `file` beside those of `model`: as `gguf_contents.compare`."""
    graph = onnx.load(file).graph
    stored = {each.name: _tensor(each) for each in graph.initializer}
    seen = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}
    bits = {seen.get(name, name): each for node in graph.node if (each := _bits(node)) for name in node.input}
    result = {"tensors": 0, "exact": 0, "largest": 0.0, "where": None, "missing": [], "left_over": []}
    matrices, replaced = stored_tensors.stored(model)
    wanted = {name: matrix for name, matrix in matrices.items()}
    wanted |= {
        key.removesuffix(".weight"): value
        for key, value in model.state_dict().items()
        if key.endswith(".weight") and value.ndim == 2 and key.rpartition(".")[0] not in replaced
    }
    table, head = (blocks.path_of(model, part) for part in (blocks.embeddings(model), blocks.head(model)))
    for name, value in wanted.items():
        if name == head and blocks.alike(model):
            continue
        result["tensors"] += 1
        ours = value.dense() if isinstance(value, Quantized) else value.float()
        names = [name, head] if blocks.alike(model) and name == table else [name]
        found = next((each for at in names if (each := _found(stored, bits, at, ours, value)) is not None), None)
        found = _nearest(stored, ours) if found is None else found
        if found is None or found.shape != ours.shape:
            result["missing"].append(name)
            continue
        apart = float((found - ours).abs().max() / ours.abs().max().clamp(min=_TINY))
        result["exact"] += torch.equal(found, ours)
        if apart > result["largest"]:
            result |= {"largest": apart, "where": name}
    known = {f"{name}.codes" for name in wanted} | {f"{head}.codes"}
    result["left_over"] = sorted(key for key in stored if key.endswith(".codes") and key not in known)
    return result


def _tensor(held) -> Tensor:
    values = numpy_helper.to_array(held)
    known = values.astype("float32") if values.dtype.name == "bfloat16" else values.copy()
    return torch.from_numpy(known)


def _bits(node) -> int:
    return next((each.i for each in node.attribute if each.name == "bits"), 0)


def _nearest(stored: dict[str, Tensor], ours: Tensor) -> Tensor | None:
    """The columns of a nameless matrix that are most like the rows of `ours`; None where none is large enough.

    The exporter transposes plain matrices, puts those beside each other that read the same inputs, and leaves no names.
    """
    rows, columns = ours.shape
    best, found = None, None
    for name, value in stored.items():
        if name.rpartition(".")[2] in (*PARTS, "weight") or value.ndim != 2 or len(value) != columns:
            continue
        for start in range(0, value.shape[1] - rows + 1, math.gcd(rows, value.shape[1])):
            apart = float((value[0, start : start + rows].float() - ours[:, 0]).abs().max())
            if best is None or apart < best:
                best, found = apart, (name, start)
    return None if found is None else stored[found[0]][:, found[1] : found[1] + rows].T.float()


def _found(stored: dict[str, Tensor], bits: dict[str, int], name: str, ours: Tensor, value) -> Tensor | None:
    """The matrix called `name` in float32; None where there is none."""
    if not isinstance(value, Quantized) or f"{name}.codes" not in stored:
        return stored[f"{name}.weight"].float() if f"{name}.weight" in stored else None
    codes, scales, zeros = (stored.get(f"{name}.{part}") for part in PARTS)
    if codes is None or scales is None:
        return None
    width = bits.get(f"{name}.codes") or 8
    return onnx_codes.dense(codes, scales, zeros, bits=width, columns=ours.shape[1])
