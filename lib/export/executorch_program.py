"""Traces a saved model into an ExecuTorch program for XNNPACK; it runs in the environment that has ExecuTorch.

    python -m lib.export.executorch_program arguments.json      # `executorch.export` writes the arguments

Linear layers are XNNPACK's of 4 bits, whose inputs it rounds to 8 bits, a scale a token; a quantized embedding keeps
its packed codes and multiplies the rows that are asked for. Keys and values are the program's own state: it takes token
ids [1, count] and their places [count], up to `batch` tokens at a time, and answers logits [1, count, vocabulary].
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torchao.quantization.quant_primitives import dequantize_affine
from torchao.quantization.quantize_.workflows.intx import intx_unpacked_to_int8_tensor as dynamic
from transformers import GenerationConfig
from transformers.exporters import ExecutorchConfig, ExecutorchExporter
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

from lib.export import executorch_codes, onnx_codes, saved_models, tracing
from lib.models import blocks
from lib.quantized.linear import QuantLinear


class CodesLinear(nn.Module):
    """A `QuantLinear` as XNNPACK's linear layer of 4-bit codes, with rounded inputs."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        codes, scale, size = executorch_codes.signed(layer.quantized)
        self.size, self.bias = size, layer.bias
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.clone())  # head and embedding share theirs; tracing wants no input twice
        self.register_buffer("zero", torch.zeros(scale.shape, dtype=torch.int8))

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., columns] to [..., rows]."""
        weight = dequantize_affine(
            self.codes, (1, self.size), self.scale, self.zero, torch.int8, -8, 7, output_dtype=torch.float32
        )
        rounded = dynamic._apply_int8_act_asym_per_token_quant_dequant(inputs)
        return nn.functional.linear(rounded, weight, self.bias)


class CodesEmbedding(nn.Module):
    """A `QuantEmbedding` as two codes a byte; rows are unpacked as they are asked for."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        codes, scale, size = executorch_codes.signed(layer.quantized)
        self.size, self.factor = size, layer.factor
        self.register_buffer("codes", onnx_codes.packed((codes.to(torch.int16) + 8).to(torch.uint8), 4))
        self.register_buffer("scale", scale.clone())  # head and embedding share theirs; tracing wants no input twice

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., columns] of `ids` [...]."""
        found = nn.functional.embedding(ids, self.codes).to(torch.int32)
        pairs = torch.stack([found % 16, found // 16], -1).flatten(-2).float() - 8
        groups = pairs.unflatten(-1, (-1, self.size)) * nn.functional.embedding(ids, self.scale)[..., None]
        rows = groups.flatten(-2)
        return rows if self.factor is None else rows * self.factor


class HalfEmbedding(nn.Module):
    """A plain embedding that stays in the type in which it is stored."""

    def __init__(self, layer: nn.Module, weight: Tensor):
        super().__init__()
        self.register_buffer("table", weight)
        self.layer = None if type(layer) is nn.Embedding else layer

    def forward(self, ids: Tensor) -> Tensor:
        """Rows in float32; a layer that scales its rows is left as it is."""
        return nn.functional.embedding(ids, self.table).float()


class Stateful(TorchExportableModuleWithStaticCache):
    """A model whose cache is the program's state: what is traced reads and writes the module's own buffers.

    transformers keeps the tensors of its buffers a second time in the cache, which tracing takes for constants.
    """

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        """Logits of `input_ids` [1, count] at the places `cache_position` [count]."""
        for index, layer in enumerate(self.static_cache.layers):
            layer.keys, layer.values = getattr(self, f"key_cache_{index}"), getattr(self, f"value_cache_{index}")
            layer.cumulative_length = getattr(self, f"cumulative_length_{index}")
        return super().forward(input_ids=input_ids, cache_position=cache_position)


def program(model: nn.Module, *, length: int, batch: int):
    """ExecuTorch's program of `model`, for texts of up to `length` tokens."""
    table = blocks.embeddings(model)
    plain = None if blocks.is_quantized(table) or type(table) is not nn.Embedding else table.weight.detach()
    copied = tracing.prepared(model, _layer)
    if plain is not None and plain.dtype != torch.float32:
        copied.set_input_embeddings(HalfEmbedding(table, plain))
    settings = {"batch_size": 1, "max_cache_len": length}
    copied.generation_config = GenerationConfig(use_cache=True, cache_implementation="static", cache_config=settings)
    whole = Stateful(copied, batch_size=1, max_cache_len=length, device="cpu")
    count = torch.export.Dim("count", min=1, max=batch)
    config = ExecutorchConfig(dynamic_shapes={"input_ids": {1: count}, "cache_position": {0: count}})
    sample = {"input_ids": torch.zeros(1, 2, dtype=torch.int64), "cache_position": torch.arange(2)}
    return ExecutorchExporter().export_program(whole, sample, config)[0]


def _layer(layer: nn.Module) -> nn.Module:
    """XNNPACK's layer of codes; a plain one for what it can't hold (`executorch.export` has asked about it)."""
    if executorch_codes.refusal(layer.quantized) is not None:
        return tracing.dense(layer)
    return CodesLinear(layer) if isinstance(layer, QuantLinear) else CodesEmbedding(layer)


def main() -> None:
    """Read the arguments, write the program and what it consists of."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    model, _ = saved_models.load(asked["model"])
    made = program(model, length=asked["length"], batch=asked["batch"])
    with open(asked["file"], "wb") as file:
        made.write_to_file(file)
    names = Counter(op.name for plan in made.executorch_program.execution_plan for op in plan.operators)
    delegates = Counter(each.id for plan in made.executorch_program.execution_plan for each in plan.delegates)
    Path(asked["report"]).write_text(json.dumps({"operators": sorted(names), "delegates": delegates}))


if __name__ == "__main__":
    main()
