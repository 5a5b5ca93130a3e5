"""A model as one ONNX graph: traced by transformers' own exporter, quantized layers as onnxruntime's operators.

Inputs: input_ids, attention_mask and position_ids, int64 [1, length], and for each block past_key_values.N.key and
.value, float32 [1, heads, past, width]; the mask is as long as past and new tokens together. Outputs: logits float32
[1, length, vocabulary] and present.N.key and .value. A text begins with a past of no tokens. A file serves one text at
a time: onnxruntime's operator of grouped attention takes several new tokens after a past for one text only.
"""

import contextlib
import logging
import re
import warnings
from pathlib import Path

import onnx_ir
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.exporters import OnnxConfig, OnnxExporter
from transformers.exporters.exporter_dynamo import get_auto_dynamic_shapes

from lib.export import onnx_codes, tracing
from lib.models import blocks
from lib.quantized.linear import QuantizedModule, QuantLinear

SHORT = {torch.float16: onnx_ir.DataType.FLOAT16, torch.bfloat16: onnx_ir.DataType.BFLOAT16}
_SMALL = 1024  # numbers of a tensor that is left as it is
DOMAIN = "com.microsoft"
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
_AXES = {2: 1, 4: 2}  # of tokens in inputs [texts, tokens], and in keys and values [texts, heads, tokens, width]
_NAME = re.compile(r"(?:.*past_key_values.*?|.*?)(\d+)\D*(key|value)s?$")


class Codes(nn.Module):
    """The three tensors of a quantized matrix; `bias` and `factor` as the layer has them."""

    def __init__(self, layer: QuantizedModule, made: dict[int, onnx_codes.Packed]):
        super().__init__()
        key = id(layer.codes)
        if key not in made:
            made[key] = onnx_codes.pack(layer.quantized)
        for name in ("codes", "scales", "zeros"):
            self.register_buffer(name, getattr(made[key], name))
        self.bits, self.block, self.shape = made[key].bits, made[key].block, tuple(layer.codes.shape)
        self.bias = getattr(layer, "bias", None)

    def _operator(self, name: str, inputs: list, shape: list, **attributes) -> Tensor:
        attributes |= {"bits": self.bits, "block_size": self.block}
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{name}", inputs, attributes, dtype=torch.float32, shape=shape, version=1
        )


class CodesLinear(Codes):
    """A `QuantLinear` as `MatMulNBits`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., columns] to [..., rows]."""
        rows, columns = self.shape
        given = [inputs, self.codes, self.scales, self.zeros]
        found = self._operator("MatMulNBits", given, [*inputs.shape[:-1], rows], N=rows, K=columns)
        return found if self.bias is None else found + self.bias


class CodesEmbedding(Codes):
    """A `QuantEmbedding` as `GatherBlockQuantized`."""

    def __init__(self, layer, made):
        super().__init__(layer, made)
        self.factor = layer.factor

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., columns] of `ids` [...]."""
        rows, columns = self.shape
        padded = self.scales.shape[1] * self.block
        given = [self.codes.reshape(rows, -1), ids, self.scales, self.zeros]
        found = self._operator("GatherBlockQuantized", given, [*ids.shape, padded], gather_axis=0, quantize_axis=1)
        found = found if padded == columns else found[..., :columns]
        return found if self.factor is None else found * self.factor


def build(model: nn.Module, *, level: int, otherwise: torch.dtype = torch.float32) -> onnx_ir.Model:
    """The graph of `model`; `level` is onnxruntime's accuracy level of products (see `onnx.export`).

    otherwise: type of the quantized matrices that the operators can't hold. Raises ValueError for models that
    transformers' exporter can't trace, with its reason.
    """
    made: dict[int, onnx_codes.Packed] = {}

    def layer(part: QuantizedModule) -> nn.Module:
        if onnx_codes.refusal(part.quantized) is not None:
            return tracing.dense(part, otherwise)
        return CodesLinear(part, made) if isinstance(part, QuantLinear) else CodesEmbedding(part, made)

    with _quiet():
        try:
            copied = tracing.prepared(model, layer)
            blocks.config(copied).use_cache = copied.config.use_cache = True
            sample = _sample(copied)
            config = OnnxConfig(dynamic_shapes=_lengths(get_auto_dynamic_shapes(sample)), ort_fusions="cpu")
            graph = OnnxExporter().export_program(copied, sample, config)[0]
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} can't be traced into an ONNX graph ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}); the models of the README's table can; export it as GGUF, or as a "
                "checkpoint."
            ) from error
    table, head = (blocks.path_of(model, part) for part in (blocks.embeddings(model), blocks.head(model)))
    _finish(graph, level, table, head)
    return graph


def _sample(model: nn.Module) -> dict:
    """Inputs to trace with: two tokens after a past of three."""
    # all keys and values are kept, also where a block looks at the last ones alone: its mask says which it sees
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 3, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return {
        "input_ids": torch.zeros(1, 2, dtype=torch.int64),
        "attention_mask": torch.ones(1, 5, dtype=torch.int64),
        "position_ids": torch.tensor([[3, 4]]),
        "past_key_values": cache,
    }


def _lengths(shapes):
    """Of shapes in which every axis may change, those in which the number of tokens alone does."""
    if isinstance(shapes, dict) and all(isinstance(key, int) for key in shapes):
        return {_AXES[len(shapes)]: torch.export.Dim.AUTO}
    if isinstance(shapes, dict):
        return {key: _lengths(value) for key, value in shapes.items()}
    return [_lengths(each) for each in shapes] if isinstance(shapes, list) else shapes


def write(graph: onnx_ir.Model, file: Path, data: Path) -> None:
    """Write the graph to `file` and its tensors to `data` beside it, 16 bits wide where these hold them exactly."""
    for name, value in list(graph.graph.initializers.items()):
        if value.dtype == onnx_ir.DataType.FLOAT and value.const_value.size >= _SMALL:
            _shorten(graph.graph, name, value)
    onnx_ir.save(graph, file, external_data=data.name)


def _shorten(graph: onnx_ir.Graph, name: str, value: onnx_ir.Value) -> None:
    given = torch.from_numpy(value.const_value.numpy().copy())
    kind = next((each for each in SHORT if torch.equal(given.to(each).float(), given)), None)
    if kind is None:
        return
    short = onnx_ir.Value(name=f"{name}.16", const_value=onnx_ir.tensor(given.to(kind), name=f"{name}.16"))
    short.dtype, short.shape = SHORT[kind], value.shape
    cast = onnx_ir.node("Cast", [short], attributes={"to": int(onnx_ir.DataType.FLOAT)})
    cast.outputs[0].dtype, cast.outputs[0].shape = value.dtype, value.shape
    graph.initializers.pop(name)
    value.replace_all_uses_with(cast.outputs[0])
    cast.outputs[0].name, short.name = f"{name}.32", name
    graph.register_initializer(short)
    graph.insert_before(graph[0], cast)


def _finish(graph: onnx_ir.Model, level: int, table: str, head: str) -> None:
    """Name inputs and outputs, keep what embedding and head share once, and say the accuracy level."""
    for values, form in ((graph.graph.inputs, PAST), (graph.graph.outputs, PRESENT)):
        for value in values:
            if found := _NAME.match(value.name):
                value.name = form.format(*found.groups())
    held = graph.graph.initializers
    for part in ("codes", "scales", "zeros", "weight"):
        one, other = held.get(f"{table}.{part}"), held.get(f"{head}.{part}")
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            continue
        if one.const_value.tobytes() == other.const_value.tobytes():
            other.replace_all_uses_with(one)
            held.pop(other.name)
    for node in graph.graph.all_nodes():
        if node.op_type == "MatMulNBits" and level:
            node.attributes["accuracy_level"] = onnx_ir.AttrInt64("accuracy_level", level)


@contextlib.contextmanager
def _quiet():
    """Without the warnings and notes of the exporter, which are about what its authors have not tried."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
