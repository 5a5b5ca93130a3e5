"""Replaces linear layers, embedding and head of a model by quantized ones."""

from pathlib import Path

import torch
from torch import nn

from lib.models import blocks
from lib.quantized.grid import PARTS, Quantized
from lib.quantized.linear import QuantLinear
from lib.quantized.quant_embedding import QuantEmbedding


def replace_(block: nn.Module, kept: dict[str, Quantized]) -> None:
    """Replace each linear layer of `block` (or of the model) named in `kept` by a `QuantLinear`."""
    for name, quantized in kept.items():
        layer = block.get_submodule(name)
        if not isinstance(layer, QuantLinear):
            block.set_submodule(name, QuantLinear(quantized, layer.bias))


def dense_(block: nn.Module, dtype: torch.dtype) -> None:
    """Replace each quantized linear layer of `block` (or of a model) by a plain one with its values, as `dtype`."""
    for name, layer in [*block.named_modules()]:
        if isinstance(layer, QuantLinear):
            rows, columns = layer.codes.shape
            with torch.device("meta"):
                plain = nn.Linear(columns, rows, bias=False)
            plain.weight = nn.Parameter(layer.quantized.dense(dtype), requires_grad=False)
            plain.bias = layer.bias
            block.set_submodule(name, plain)


def release_file_(model: nn.Module) -> None:
    """Copy what is left of the weights that lie in a mapped checkpoint, so that the file's pages are let go.

    Weights that were read from a file lie in one mapping of it: the embedding alone holds the pages of every block that
    was replaced, and a quantized model takes more memory than it did before. Where the system does not say what is
    mapped, nothing is copied.
    """
    spans = _mapped_files()
    for each in (*model.parameters(), *model.buffers()):
        if each.device.type == "cpu" and any(start <= each.data_ptr() < stop for start, stop in spans):
            each.data = each.data.clone()


def _mapped_files() -> list[tuple[int, int]]:
    """First and last address of every mapping of a checkpoint in this process, as Linux tells them."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    spans = [line.split(maxsplit=1)[0].split("-") for line in lines if line.endswith(".safetensors")]
    return [(int(start, 16), int(stop, 16)) for start, stop in spans]


def place_(model: nn.Module, embedding: Quantized | None, head: Quantized | None) -> tuple[str, str]:
    """Replace embedding and head by quantized ones and return their names; None leaves one unchanged.

    The same object given twice ties them; otherwise the model is not tied afterwards.
    """
    table, layer = blocks.embeddings(model), blocks.head(model)
    names = blocks.path_of(model, table), blocks.path_of(model, layer)
    table = table if embedding is None else QuantEmbedding.of(table, embedding)
    layer = layer if head is None else QuantLinear(head, layer.bias)
    if head is not None and head is embedding:
        table.share_(layer)
        # what transformers ties on request, instead of the two weights
        parts = [part for part in PARTS if getattr(head, part) is not None]
        model._tied_weights_keys = {f"{names[1]}.{part}": f"{names[0]}.{part}" for part in parts}
    for name, module in zip(names, (table, layer)):
        model.set_submodule(name, module)
    if head is not None or embedding is not None:
        blocks.state_tying_(model)
    return names
