"""A copy of a model for exporters that trace it: float32, with layers of the target in the place of quantized ones."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.models import blocks
from lib.quantized.linear import QuantLinear


class Rows(nn.Module):
    """A dequantized embedding, with the factor by which it multiplies its rows."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        super().__init__()
        rows, columns = layer.codes.shape
        self.table = nn.Embedding(rows, columns, _weight=layer.quantized.dense(dtype).float())
        self.factor = layer.factor

    @property
    def weight(self) -> Tensor:
        """The table's."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., columns] of `ids` [...]."""
        rows = self.table(ids)
        return rows if self.factor is None else rows * self.factor


def dense(layer: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The plain layer in float32 that computes what a quantized one does, with its weights rounded to `dtype`."""
    if not isinstance(layer, QuantLinear):
        return Rows(layer, dtype)
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.quantized.dense(dtype).float(), requires_grad=False)
    made.bias = layer.bias
    return made


def prepared(model: nn.Module, layer: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The copy; `model` is left as it is, and its codes are not copied.

    layer: makes, of a `QuantLinear` or `QuantEmbedding`, a module that computes the same with the target's operators.
    """
    instead = {id(getattr(model, "tokenizer", None)): None, id(getattr(model, "hf_quantizer", None)): None}
    for part in model.modules():
        if blocks.is_quantized(part):
            instead[id(part)] = layer(part)
    copied = copy.deepcopy(model, instead).float().eval()
    copied.requires_grad_(False)
    # of quantized layers, transformers would tie parts that the copy has no more
    copied._tied_weights_keys = {} if any(map(blocks.is_quantized, model.modules())) else copied._tied_weights_keys
    return copied
