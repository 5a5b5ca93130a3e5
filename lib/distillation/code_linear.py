"""A quantized linear layer whose codes may move: latent weights, measured in code steps and rounded in each pass.

    W = s₀ (1 + δ) (q - z),   q = clamp(⌊c⌉, 0, 2ᵇ - 1),   c = c₀ + `code_rate` · γ

δ [rows, groups] and γ [rows, groups, columns of a group] are trained. Rounding lets the gradient pass
(straight-through, Bengio et al., arXiv 1308.3432); where c lies outside of the codes the clip stops it (LSQ, Esser et
al., arXiv 1902.08153, equation 3; BitDistiller, arXiv 2402.10631, section 3.1). Latents are float32: in bfloat16 the
small updates of such a training would be lost. They count in code steps, so that one rate suits all groups whatever
their scales, and Adam with learning rate r moves c by at most about r · `code_rate` codes a step.
"""

import torch
from torch import Tensor, nn

from lib.quantized.linear import QuantLinear
from lib.quantizers.learnable_scale import LearnableScaleLinear, dense

INSIDE = 0.49  # how far a latent may begin from its code: nearer to it than to any other


class CodeLinear(LearnableScaleLinear):
    """A `QuantLinear` with trainable δ and γ.

    code_rate: code steps of c for one of γ; one learning rate serves both. original: the weight before it was
    quantized, [rows, columns]: c then begins where it lies inside the cell of its code, else in the middle. Raises
    ValueError for a layer with a codebook, whose levels are no steps.
    """

    METHOD = "codes"

    def __init__(self, layer: QuantLinear, dtype: torch.dtype, *, code_rate: float, original: Tensor | None = None):
        if layer.codebook is not None:
            raise ValueError(
                "the layer's levels come from a codebook; codes that move need levels in even steps; quantize with "
                "rtn, gptq or another method on affine grids."
            )
        super().__init__(layer, dtype)
        self.code_rate, self.top = code_rate, 2**layer.bits - 1
        codes = layer.codes.float().view(*self.start.shape, -1)
        self.register_buffer("middle", self._zero(torch.float32), persistent=False)
        if original is not None:
            exact = original.float().view_as(codes) / self.start[..., None] + self.middle
            codes = exact.clamp(codes - INSIDE, codes + INSIDE)
        self.register_buffer("first", codes, persistent=False)
        self.gamma = nn.Parameter(torch.zeros_like(codes))

    def _zero(self, dtype: torch.dtype) -> Tensor:
        """z, to be subtracted from codes [rows, groups, columns of a group]."""
        zero = self.layer.zero_point
        return torch.tensor(2.0 ** (self.layer.bits - 1)) if zero is None else zero.to(dtype)[..., None]

    def latent(self) -> Tensor:
        """c [rows, groups, columns of a group], float32."""
        return self.first + self.code_rate * self.gamma.detach()

    def codes(self) -> Tensor:
        """The codes as they are now, float32 like `latent`."""
        return self.latent().round_().clamp_(0, self.top)

    def levels(self) -> Tensor:
        """q - z, in the type of the model."""
        return self.codes().sub_(self.middle).to(self.dtype)

    def inside(self) -> Tensor:
        """Where c lies on codes, so that the clip lets gradients pass; a mask like `latent`."""
        c = self.latent()
        return (c > -0.5) & (c < self.top + 0.5)

    def learned(self) -> dict[str, nn.Parameter]:
        """δ as in `e2e_qp`, and γ."""
        return super().learned() | {":codes": self.gamma}

    def settle_(self) -> None:
        """Store codes and scales in the layer."""
        codes = self.codes().to(torch.uint8).view_as(self.layer.codes)
        super().settle_()
        self.layer.codes = codes

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer, with gradients for δ and γ."""
        outputs = Product.apply(inputs, self.start * (1 + self.delta), self.gamma, self)
        return outputs if self.layer.bias is None else outputs + self.layer.bias


class Product(torch.autograd.Function):
    """x Wᵀ with W = s (q - z): ∂W/∂s = q - z, summed over each group, and ∂W/∂γ = s · `code_rate` inside the clip.

    Neither W nor q is kept between the passes.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, scale: Tensor, gamma: Tensor, part: CodeLinear) -> Tensor:
        ctx.save_for_backward(inputs, scale)
        ctx.part = part
        return inputs @ dense(part.levels(), scale).T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (inputs, scale), part = ctx.saved_tensors, ctx.part
        levels = part.levels()
        of_weight = (gradient.flatten(0, -2).T @ inputs.flatten(0, -2)).view_as(levels)
        of_scale = (of_weight * levels).sum(-1, dtype=torch.float32)
        of_gamma = of_weight.float().mul_(scale[..., None] * part.code_rate).mul_(part.inside())
        of_inputs = gradient @ dense(levels, scale) if ctx.needs_input_grad[0] else None
        return of_inputs, of_scale, of_gamma, None
