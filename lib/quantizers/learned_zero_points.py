"""Trains scales and zero points end to end: `e2e_qp` with a learned shift of each group's grid.

A zero point z is an integer from 0 to 2**bits - 1, which a gradient can't move. So a real-valued shift ζ is trained
beside δ, and each pass (and the final layer) uses the zero point rounded to the nearest integer,

    W = s₀ (1 + δ) (q - z),   z = clamp(round(z₀ + ZERO_POINT_RATE ζ)),

with the gradient of z taken for that of z₀ + ZERO_POINT_RATE ζ, straight through rounding and clamping (as EfficientQAT
does in its first phase: Chen et al., arXiv 2407.11062, section 3.2). Its second phase, E2E-QP (`e2e_qp`), keeps z
fixed.

The recipe does not use it: a zero point moves a whole group by a whole step of its grid, and no tried setting improved
the result. On the packaged model at 2 bits (GPTQ's codes, 32 windows of WikiText-2, 60 steps) scales alone reached
0.906 ± 0.030 nats per token. At this `ZERO_POINT_RATE` and the usual learning rate no ζ moves by half a step within so
few steps, so that the result is the same; at 10, 1.2 % of the zero points moved, and the divergence was 0.993 ± 0.032.
On a random model of 4 blocks at 3 bits, with a tenth of the zero points changed by one (40 steps), the divergence fell
from 0.171 to 0.0282 nats by training scales alone and to 0.0290 with zero points; a larger `ZERO_POINT_RATE` made it
worse (10: 0.092), and so did using the shift unrounded in every pass (0.038 to 0.063).
"""

import torch
from torch import Tensor, nn

from lib.quantized.grid import Quantized
from lib.quantized.levels import nearest, stored
from lib.quantized.linear import QuantLinear
from lib.quantized.zero_points import typed
from lib.quantizers import calibrate, e2e_qp
from lib.quantizers.learnable_scale import LearnableScaleLinear, dense, differences

ZERO_POINT_RATE = 2  # a zero point has farther to go than a scale; one learning rate serves both


def tune_(model: nn.Module, calibration, reference, **options) -> dict[str, Quantized]:
    """Train scales and zero points of every quantized layer inside the blocks of `model`, in place; return all by name.

    Arguments and errors are those of `e2e_qp.tune_`. Layers without zero points (symmetric and balanced grids,
    codebooks) learn their scales alone; ValueError where no layer has any.
    """
    layers = calibrate.layers(model).values()
    quantized = [layer for layer in layers if isinstance(layer, QuantLinear)]
    if quantized and not any(map(moves, quantized)):
        raise ValueError(
            f"none of the {len(quantized)} quantized layers of {type(model).__name__} has zero points; they are what "
            "this tunes beside scales; use e2e_qp.tune_, or quantize with symmetric=False, levels='integer' or 'half'."
        )
    return e2e_qp.tune_(model, calibration, reference, layer_class=LearnableZeroPointLinear, **options)


def moves(layer: QuantLinear) -> bool:
    """Whether the groups of `layer` have zero points of their own."""
    return layer.zero_point is not None and bool(stored(layer.bits, layer.levels).step)


class LearnableZeroPointLinear(LearnableScaleLinear):
    """A `QuantLinear` with a trainable δ and, where it has zero points, a trainable ζ; both [rows, groups], float32."""

    METHOD = "learned_zero_points"

    def __init__(self, layer: QuantLinear, dtype: torch.dtype):
        super().__init__(layer, dtype)
        self.zeta = nn.Parameter(torch.zeros_like(self.start)) if moves(layer) else None

    def learned(self) -> dict[str, nn.Parameter]:
        """δ as in `e2e_qp`, and ζ."""
        return super().learned() | ({} if self.zeta is None else {":shift": self.zeta})

    def settle_(self) -> None:
        """Store scales and zero points in the layer."""
        if self.zeta is not None:
            self.layer.zero_point = typed(self.zero_point(), self.layer.levels)
        super().settle_()

    def zero_point(self) -> Tensor:
        """The nearest that the grid has, float32 [rows, groups]; gradients pass straight through to ζ."""
        moved = self.layer.zero_point + ZERO_POINT_RATE * self.zeta
        return moved + (nearest(moved, self.layer.bits, self.layer.levels) - moved).detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer, with gradients for δ and ζ."""
        if self.zeta is None:
            return super().forward(inputs)
        outputs = Product.apply(inputs, self.start * (1 + self.delta), self.zero_point(), self)
        return outputs if self.layer.bias is None else outputs + self.layer.bias


class Product(torch.autograd.Function):
    """x Wᵀ with W = s (q - z); ∂W/∂s = q - z and ∂W/∂z = -s, both summed over each group.

    As in `learnable_scale.Product`, only the codes are kept between the passes.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, scale: Tensor, zero: Tensor, part: LearnableZeroPointLinear) -> Tensor:
        ctx.save_for_backward(inputs, scale, zero)
        ctx.part = part
        return inputs @ dense(_levels(part, zero), scale).T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        inputs, scale, zero = ctx.saved_tensors
        levels = _levels(ctx.part, zero)
        of_weight = (gradient.flatten(0, -2).T @ inputs.flatten(0, -2)).view_as(levels)
        of_zero = of_weight.sum(-1, dtype=torch.float32).mul_(-scale)
        of_scale = of_weight.mul_(levels).sum(-1, dtype=torch.float32)
        of_inputs = gradient @ dense(levels, scale) if ctx.needs_input_grad[0] else None
        return of_inputs, of_scale, of_zero, None


def _levels(part: LearnableZeroPointLinear, zero: Tensor) -> Tensor:
    """q - z [rows, groups, columns of a group]."""
    # the straight-through sum may differ from the zero point by a rounding error
    return differences(part.layer.codes, nearest(zero, part.layer.bits, part.layer.levels), part.dtype)
