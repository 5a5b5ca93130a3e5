"""A linear layer with quantized weights and trainable scales; it replaces `QuantLinear` during `e2e_qp`."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.quantized import pairs
from lib.quantized.grid import HUGE, TINY
from lib.quantized.linear import QuantLinear


class LearnableScaleLinear(nn.Module):
    """A `QuantLinear` whose scale is s₀ (1 + δ) with a trainable δ [rows, groups], float32."""

    METHOD = "e2e_qp"  # name of the method in a state

    def __init__(self, layer: QuantLinear, dtype: torch.dtype):
        super().__init__()
        self.layer, self.start, self.dtype = layer, layer.scale.float(), dtype
        layer.forget()  # frees the dense matrix of an earlier pass
        self.delta = nn.Parameter(torch.zeros_like(self.start))
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def levels(self) -> Tensor:
        """The unscaled values, [rows, groups, columns of a group], computed from the codes at each call."""
        codes, _, zero, bits, _, codebook, levels = self.layer.quantized
        if levels == pairs.LEVELS:
            return self._entries.to(self.dtype)
        if codebook is not None:
            return codebook.to(self.dtype)[codes.long()].view(*self.start.shape, -1)
        if zero is not None:
            return differences(codes, zero, self.dtype)
        return codes.to(self.dtype).view(*self.start.shape, -1).sub_(2 ** (bits - 1))

    @functools.cached_property
    def _entries(self) -> Tensor:
        """What `levels` gives for pairs, int8: looked up once, since that takes a fifth of a training step."""
        codes, _, number, _, _, codebook, _ = self.layer.quantized
        return pairs.levels(codes, number, codebook, torch.int8)

    def learned(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by the suffix of their names in a state."""
        return {"": self.delta}

    def settle_(self) -> None:
        """Store the learned scales in the layer."""
        self.layer.scale = self.rounded()
        self.layer.forget()

    def rounded(self) -> Tensor:
        """The scale as it will be stored: bfloat16 [rows, groups], positive and finite."""
        return (self.start * (1 + self.delta)).detach().clamp(TINY, HUGE).to(self.layer.scale.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer, with gradients for δ."""
        outputs = Product.apply(inputs, self.start * (1 + self.delta), self.levels)
        return outputs if self.layer.bias is None else outputs + self.layer.bias


class Product(torch.autograd.Function):
    """x Wᵀ with W = s (q - z); ∂W/∂s = q - z (equation 4 of the paper), summed over each group.

    levels: makes q - z from the codes; both passes call it, so that neither q - z nor W is kept between them.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, scale: Tensor, levels: Callable[[], Tensor]) -> Tensor:
        ctx.save_for_backward(inputs, scale)
        ctx.levels = levels
        return inputs @ dense(levels(), scale).T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (inputs, scale), levels = ctx.saved_tensors, ctx.levels()
        of_weight = (gradient.flatten(0, -2).T @ inputs.flatten(0, -2)).view_as(levels)
        of_scale = of_weight.mul_(levels).sum(-1, dtype=torch.float32)
        of_inputs = gradient @ dense(levels, scale) if ctx.needs_input_grad[0] else None
        return of_inputs, of_scale, None


def differences(codes: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """q - z [rows, groups, columns of a group] in `dtype`, of codes and zero points that may be halves.

    Whole numbers up to 255 are exact in bfloat16, and so are the halves of grids of up to 7 bits.
    """
    if dtype == torch.bfloat16 and zero.is_floating_point():
        return codes.float().view(*zero.shape, -1).sub_(zero.float()[..., None]).to(dtype)
    return codes.to(dtype).view(*zero.shape, -1).sub_(zero.to(dtype)[..., None])


def dense(levels: Tensor, scale: Tensor) -> Tensor:
    """W [rows, columns] in the type of `levels` [rows, groups, columns of a group], which it overwrites."""
    return levels.mul_(scale[..., None].to(levels.dtype)).flatten(1)
