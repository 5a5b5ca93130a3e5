"""QuantLinear: a linear layer that stores integer codes and computes with the dequantized weights.

`QuantizedModule` is the base that it shares with `quant_embedding.QuantEmbedding`: codes and grid as buffers.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lib.quantized.grid import PARTS, Quantized

GRIDS = {
    "integer": "asymmetric",
    "half": "half-integer zero points",
    "balanced": "balanced",
    "pairs": "pairs",
}  # by levels


class QuantizedModule(nn.Module):
    """A module that holds a quantized matrix in place of a weight.

    The codes (uint8), the scale (bfloat16), the zero point (uint8, float16 if it may be a half, None if symmetric) and
    the codebook (None on affine grids; else W = scale · codebook[codes]) are buffers: they are saved and moved with the
    model.
    """

    stands_for: type[nn.Module]  # the class of the layer that it replaces, as `models.blocks` needs it

    def __init__(self, quantized: Quantized):
        super().__init__()
        self.bits, self.group_size, self.levels = quantized.bits, quantized.group_size, quantized.levels
        for part in PARTS:
            self.register_buffer(part, getattr(quantized, part))

    @property
    def quantized(self) -> Quantized:
        """Codes and grid, as packing, kernels and exporters read them."""
        tensors = {part: getattr(self, part) for part in PARTS}
        return Quantized(**tensors, bits=self.bits, group_size=self.group_size, levels=self.levels)

    def _apply(self, function, recurse=True):
        """Move with the model, but keep the grid's types: float16 would flush small scales to zero."""
        before = {part: getattr(self, part) for part in PARTS if part != "codes"}
        super()._apply(function, recurse)
        for name, tensor in before.items():
            if tensor is not None and getattr(self, name).dtype != tensor.dtype:
                setattr(self, name, tensor.to(self.scale.device))
        return self

    def extra_repr(self) -> str:
        """The grid, as `print(model)` shows it."""
        grid = "symmetric" if self.zero_point is None else GRIDS[self.levels]
        return f"bits={self.bits}, group_size={self.group_size}, {grid}"


class QuantLinear(QuantizedModule):
    """y = x Wᵀ + bias with W = scale · (codes - zero_point), of shape [out_features, in_features].

    The dequantized matrix is made at the first product and kept for the following ones, in the dtype of the input;
    `forget()` drops it. While `sparing` is True it is made for each product, and made again in the backward pass, so
    that memory holds the codes alone: see `sparing`, the context.
    """

    stands_for = nn.Linear
    sparing = False

    def __init__(self, quantized: Quantized, bias: Tensor | None = None):
        super().__init__(quantized)
        self.out_features, self.in_features = quantized.codes.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self._dense: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """Dequantized matrix [out_features, in_features] in float32; computed anew at each call."""
        return self.quantized.dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `inputs` [..., in_features] to [..., out_features], in the dtype of `inputs`."""
        if self.sparing:
            outputs = Recomputed.apply(inputs, self)
            return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)
        if self._dense is None or self._dense.dtype != inputs.dtype:
            with torch.no_grad():
                self._dense = self.quantized.dense(inputs.dtype)
        return nn.functional.linear(inputs, self._dense, self.bias)

    def forget(self) -> None:
        """Drop the kept dequantized matrix (the next product makes it again)."""
        self._dense = None

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        self.forget()
        return self

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.forget()

    def extra_repr(self) -> str:
        """Shape and grid, as `print(model)` shows them."""
        return f"{self.in_features}, {self.out_features}, {super().extra_repr()}"


class Recomputed(torch.autograd.Function):
    """x Wᵀ of a `QuantLinear`, with a gradient for x only; W is made from the codes in each pass and kept in neither.

    What QLoRA does with its NF4 weights (Dettmers et al., arXiv 2305.14314, section 3).
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, layer: QuantLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return inputs @ layer.quantized.dense(inputs.dtype).T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return (gradient @ ctx.layer.quantized.dense(gradient.dtype)).to(ctx.dtype), None


@contextlib.contextmanager
def sparing(model: nn.Module) -> Iterator[None]:
    """Context in which the quantized layers of `model` keep no dequantized matrix: less memory, more time a pass."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    before = [layer.sparing for layer in layers]
    try:
        for layer in layers:
            layer.forget()
            layer.sparing = True
        yield
    finally:
        for layer, kept in zip(layers, before):
            layer.sparing = kept
