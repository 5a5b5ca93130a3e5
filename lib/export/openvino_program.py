"""Traces a saved model into OpenVINO's form; it runs in the environment that has OpenVINO.

    python -m lib.export.openvino_program arguments.json      # `openvino.export` writes the arguments

transformers' exporter traces the model with dequantized weights and folds keys and values into states. Then each
constant that holds the values of a quantized matrix is replaced by what OpenVINO keeps packed: codes of 4 or 8 bits,
less zero points, times scales. Other constants become 16-bit numbers where these hold them exactly.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy
import openvino
import torch
from openvino import Model, Type, opset13
from torch import nn
from transformers import DynamicCache
from transformers.exporters import OpenVINOConfig, OpenVINOExporter

from lib.export import onnx_codes, saved_models, tracing
from lib.models import blocks
from lib.quantized import integers
from lib.quantized.grid import Quantized

SHORT = {torch.float16: Type.f16, torch.bfloat16: Type.bf16}
_KEPT: list[numpy.ndarray] = []  # memory of constants
_SMALL = 4096  # numbers of a constant that is left as it is


def build(model: nn.Module) -> Model:
    """OpenVINO's form of `model`."""
    found: dict[str, tuple[str, object]] = {}

    copied = tracing.prepared(model, tracing.dense)
    blocks.config(copied).use_cache = copied.config.use_cache = True
    for name, part in model.named_modules():
        value = part.quantized if blocks.is_quantized(part) else getattr(part, "weight", None)
        if value is not None:
            matrix = value.dense() if isinstance(value, Quantized) else value.detach().float()
            found.setdefault(_digest(matrix.numpy()), (name, value))
    graph = OpenVINOExporter().export_program(copied, _sample(copied), OpenVINOConfig(dynamic=True))[0]
    for operator in graph.get_ordered_ops():
        if operator.get_type_name() == "Constant" and operator.get_element_type() == Type.f32:
            _replace(operator, found)
    graph.validate_nodes_and_infer_types()
    return graph


def _sample(model: nn.Module) -> dict:
    """Inputs to trace with: two tokens of two texts after a past of three."""
    cache = DynamicCache(config=blocks.config(model))
    with torch.no_grad():
        model(input_ids=torch.zeros(2, 3, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return {
        "input_ids": torch.zeros(2, 2, dtype=torch.int64),
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "position_ids": torch.tensor([[3, 4]] * 2),
        "past_key_values": cache,
    }


def _replace(constant, found: dict) -> None:
    """Put the packed form of a matrix in the place of the constant that holds its values."""
    if constant.get_output_size() != 1 or (constant.data.size < _SMALL and _digest(constant.data) not in found):
        return
    name, value = found.get(_digest(constant.data), (None, None))
    if isinstance(value, Quantized):
        new = _unpacking(name, value)
    else:
        given = torch.from_numpy(numpy.array(constant.data))
        kind = next((each for each in SHORT if torch.equal(given.to(each).float(), given)), None)
        if kind is None or constant.data.size < _SMALL:
            if name is not None:
                constant.set_friendly_name(f"{name}.weight")
            return
        new = opset13.convert(_constant(f"{name or constant.get_friendly_name()}.weight", given.to(kind)), Type.f32)
    for target in constant.output(0).get_target_inputs():
        target.replace_source_output(new.output(0))


def _unpacking(name: str, matrix: Quantized):
    """(codes - zeros) * scales, reshaped to the matrix."""
    matrix = integers.integer(matrix)
    rows, columns = matrix.codes.shape
    groups = matrix.scale.shape[1]
    bits = 4 if matrix.bits <= 4 else 8
    zeros = matrix.zero_point
    zeros = torch.full((1, 1), 2 ** (matrix.bits - 1), dtype=torch.uint8) if zeros is None else zeros
    codes = opset13.convert(_integers(f"{name}.codes", matrix.codes.reshape(rows, groups, -1), bits), Type.f32)
    middle = opset13.convert(_integers(f"{name}.zeros", zeros[..., None], bits), Type.f32)
    scales = _constant(f"{name}.scales", matrix.scale.float()[..., None])
    values = opset13.multiply(opset13.subtract(codes, middle), scales)
    return opset13.reshape(values, numpy.array([rows, columns], numpy.int64), special_zero=False)


def _integers(name: str, codes: torch.Tensor, bits: int):
    data = onnx_codes.packed(codes.reshape(-1), bits)
    return _constant(name, data, list(codes.shape), Type.u4 if bits == 4 else Type.u8)


def _constant(name: str, values: torch.Tensor, shape: list[int] | None = None, kind: Type | None = None):
    """A constant of the bytes of `values`, which are kept: OpenVINO reads them where they lie."""
    data = values.contiguous().view(torch.uint8).numpy()
    _KEPT.append(data)
    kind = kind or SHORT.get(values.dtype, Type.f32)
    made = openvino.op.Constant(openvino.Tensor(data, shape or list(values.shape), kind))
    made.set_friendly_name(name)
    return made


def _digest(values: numpy.ndarray) -> str:
    return hashlib.sha256(numpy.ascontiguousarray(values)).hexdigest()


def main() -> None:
    """Read the arguments, write the model."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    model, _ = saved_models.load(asked["model"])
    openvino.save_model(build(model), asked["file"], compress_to_fp16=False)
    Path(asked["report"]).write_text("{}")


if __name__ == "__main__":
    main()
