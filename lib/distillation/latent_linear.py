"""Quantized linear layers with latent weights that are trained and rounded in each pass: the base of published recipes.

A kind of layer is a class with `fake`, which makes the rounded weight from the trained parameters in plain autograd.
The weight is made anew in both passes, so that nothing of its size is kept between them. Latents are float32 and count
in steps of the start's grid, as in `code_linear`: V = V₀ + `code_rate` · s₀ · γ with a trained γ, so that one optimizer
with one learning rate serves scales and weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.quantized.grid import HUGE, TINY
from lib.quantized.linear import QuantLinear


class LatentLinear(nn.Module):
    """A `QuantLinear` with trained latent weights V [rows, groups, columns of a group].

    original: the weight before it was quantized, [rows, columns]; None starts at the quantized values. Subclasses say
    where V begins (`started`), how it is rounded (`fake`), what is saved of it (`stored`), and which parameters beside
    γ are trained (`learned`).
    """

    METHOD = "latent"

    def __init__(self, layer: QuantLinear, dtype: torch.dtype, *, code_rate: float, original: Tensor | None = None):
        super().__init__()
        self.layer, self.dtype, self.unit = layer, dtype, code_rate * layer.scale.float()[..., None]
        self.top = 2**layer.bits - 1
        layer.forget()
        shape = (*layer.scale.shape, layer.codes.shape[1] // layer.scale.shape[1])
        weight = layer.quantized.dense() if original is None else original
        self.register_buffer("first", self.started(weight.detach().float().view(shape)), persistent=False)
        self.gamma = nn.Parameter(torch.zeros_like(self.first))
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def started(self, weight: Tensor) -> Tensor:
        """V₀ of `weight`."""
        return weight

    def learned(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by the suffix of their names in a state."""
        return {":weights": self.gamma}

    def latent(self) -> Tensor:
        """V."""
        return self.first + self.unit * self.gamma

    def fake(self) -> Tensor:
        """The rounded weight, like V, with gradients for what is learned."""
        raise TypeError(f"{type(self).__name__} says nothing of how weights are rounded; give it `fake`.")

    def stored(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scale and zero point (None: the start's) as they are saved, and the codes of V on that grid."""
        raise TypeError(f"{type(self).__name__} says nothing of what is saved; give it `stored`.")

    @torch.no_grad()
    def settle_(self) -> None:
        """Store the grid and the codes in the layer."""
        scale, zero, codes = self.stored()
        self.layer.scale = scale.clamp(TINY, HUGE).to(self.layer.scale.dtype)
        if zero is not None:
            self.layer.zero_point = zero.to(self.layer.zero_point.dtype)
        self.layer.codes = codes.to(torch.uint8).view_as(self.layer.codes)
        self.layer.forget()

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer, with gradients for what is learned."""
        outputs = Product.apply(inputs, self.fake, self.dtype, *self.learned().values())
        return outputs if self.layer.bias is None else outputs + self.layer.bias


class Product(torch.autograd.Function):
    """x Wᵀ with W = `fake()`, made again in the backward pass."""

    @staticmethod
    def forward(ctx, inputs: Tensor, fake: Callable[[], Tensor], dtype: torch.dtype, *learned: nn.Parameter) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.fake, ctx.dtype, ctx.learned = fake, dtype, learned
        return inputs @ fake().flatten(1).to(dtype).T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (inputs,) = ctx.saved_tensors
        with torch.enable_grad():
            weight = ctx.fake()
        of_weight = (gradient.flatten(0, -2).T @ inputs.flatten(0, -2)).float().view_as(weight)
        found = torch.autograd.grad(weight, ctx.learned, of_weight)
        of_inputs = gradient @ weight.detach().flatten(1).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return of_inputs, None, None, *found


def straight(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `exact` (straight-through, Bengio et al., arXiv 1308.3432)."""
    return exact + (rounded - exact).detach()
