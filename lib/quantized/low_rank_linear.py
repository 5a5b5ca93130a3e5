"""A linear layer with a low-rank part of 8 bits beside it: what an adapter learned, where codes can't take it in."""

import torch
from torch import Tensor, nn

from lib.quantized.grid import Quantized, choose, quantize

BITS = 8


class LowRankLinear(nn.Module):
    """y = f (x Wᵀ + (x Aᵀ) Bᵀ) + bias, W of `layer`, plain or quantized; A and B as 8-bit codes with a scale a row.

    a: [rank, in_features]. b: [out_features, rank]; a factor s is in it. factor: f [out_features], DoRA's norms, None
    for 1.
    """

    def __init__(self, layer: nn.Module, a: Quantized, b: Quantized, factor: Tensor | None = None):
        super().__init__()
        self.layer, self.in_features, self.out_features = layer, layer.in_features, layer.out_features
        for name, part in (("a", a), ("b", b)):
            self.register_buffer(f"{name}_codes", part.codes)
            self.register_buffer(f"{name}_scale", part.scale)
        self.register_buffer("factor", factor)

    @classmethod
    def of(cls, layer: nn.Module, a: Tensor, b: Tensor, factor: Tensor | None = None) -> "LowRankLinear":
        """Round float a [rank, in_features] and b [out_features, rank] to 8 bits."""
        return cls(layer, rounded(a), rounded(b), None if factor is None else factor.to(torch.bfloat16))

    @property
    def a(self) -> Quantized:
        """A, as codes and scales."""
        return Quantized(self.a_codes, self.a_scale, None, BITS, self.a_codes.shape[1])

    @property
    def b(self) -> Quantized:
        """B, as codes and scales."""
        return Quantized(self.b_codes, self.b_scale, None, BITS, self.b_codes.shape[1])

    @property
    def weight(self) -> Tensor:
        """W + B A, with f: what it multiplies with, float32 [out_features, in_features]."""
        whole = self.layer.weight.detach().float() + self.b.dense() @ self.a.dense()
        return whole if self.factor is None else whole * self.factor.float()[:, None]

    @property
    def nbytes(self) -> int:
        """Bytes of the low-rank part."""
        return sum(each.nbytes for each in self.buffers(recurse=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `inputs` [..., in_features] to [..., out_features]."""
        bias, dtype = self.layer.bias, inputs.dtype
        outputs = self.layer(inputs) if bias is None else self.layer(inputs) - bias
        outputs = outputs + (inputs @ self.a.dense(dtype).T) @ self.b.dense(dtype).T
        outputs = outputs if self.factor is None else outputs * self.factor.to(dtype)
        return outputs if bias is None else outputs + bias

    def _apply(self, function, recurse=True):
        """Move with the model, but keep the types of the scales."""
        before = {name: each.dtype for name, each in self.named_buffers(recurse=False)}
        super()._apply(function, recurse)
        for name, dtype in before.items():
            setattr(self, name, getattr(self, name).to(dtype))
        return self

    def extra_repr(self) -> str:
        """Shape and rank, as `print(model)` shows them."""
        return f"{self.in_features}, {self.out_features}, rank={len(self.a_codes)}, {BITS} bits"


def rounded(matrix: Tensor) -> Quantized:
    """`matrix` [rows, columns] on a symmetric 8-bit grid with a scale for each row."""
    matrix = matrix.detach().float()
    scale, _ = choose(matrix, bits=BITS, group_size=-1, symmetric=True)
    return Quantized(quantize(matrix, scale, None, bits=BITS), scale, None, BITS, matrix.shape[1])


def layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The layers of `model` that have a low-rank part, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LowRankLinear)}


def without_(model: nn.Module) -> dict[str, LowRankLinear]:
    """Put the plain layers back in place of those with a low-rank part; returns these by name, for `with_`."""
    found = layers(model)
    for name, part in found.items():
        model.set_submodule(name, part.layer)
    return found


def with_(model: nn.Module, parts: dict[str, LowRankLinear]) -> nn.Module:
    """Put `parts` in place of the layers that they stand for."""
    for name, part in parts.items():
        model.set_submodule(name, part)
    return model
