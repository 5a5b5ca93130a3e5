"""Learned step sizes: latent weights and the scale of each group are trained, and a gradient stops at the clip.

    W = s (clamp(⌊V / s + z⌉, 0, 2ᵇ - 1) - z)

    ∂W/∂V = 1 inside the clip, 0 outside
    ∂W/∂s = (q - z) - V / s inside, q - z outside                       (LSQ, equation 3)

z is that of the start and stays. With whole codes this is LSQ (Esser et al., arXiv 1902.08153); with balanced levels,
z = (2ᵇ - 1) / 2, it is the stretched elastic quantization that ParetoQ uses at 2 bits (Liu et al., arXiv 2502.02631,
equations 4 and 5: the same values, written as α = 2 s), and with one zero point a group the grid of EfficientQAT's
block-wise phase (Chen et al., arXiv 2407.11062, section 3.2). LSQ multiplies the gradient of s by 1 / √(n · top); with
Adam a factor changes nothing, so it is left out. A scale moves in proportion to its size, as in `e2e_qp`.
"""

import torch
from torch import Tensor, nn

from lib.distillation.latent_linear import LatentLinear
from lib.quantized.linear import QuantLinear


class LSQLinear(LatentLinear):
    """A `QuantLinear` with trained latent weights and scales, s = s₀ (1 + δ)."""

    METHOD = "lsq"

    def __init__(self, layer: QuantLinear, dtype: torch.dtype, *, code_rate: float, original: Tensor | None = None):
        if layer.codebook is not None:
            raise ValueError(
                "the layer's levels come from a codebook, which has no step to learn; quantize with rtn, gptq or "
                "another method on affine grids, or train it by bitdistiller."
            )
        super().__init__(layer, dtype, code_rate=code_rate, original=original)
        self.start, zero = layer.scale.float(), layer.zero_point
        self.middle = torch.tensor(2.0 ** (layer.bits - 1)) if zero is None else zero.float()[..., None]
        self.delta = nn.Parameter(torch.zeros_like(self.start))

    def learned(self) -> dict[str, nn.Parameter]:
        """The latents and δ."""
        return super().learned() | {"": self.delta}

    def fake(self) -> Tensor:
        """The rounded weight; autograd gives the two gradients above."""
        scale = (self.start * (1 + self.delta))[..., None]
        ratio = self.latent() / scale
        # rounding lets the gradient pass; the clip is autograd's own, half a code beyond the outermost
        inside = (ratio + self.middle).clamp(-0.5, self.top + 0.5) - self.middle
        rounded = ((ratio + self.middle).round().clamp(0, self.top) - self.middle).detach()
        return scale * (inside + (rounded - inside).detach())

    def stored(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The learned scale, the start's zero point, and the codes."""
        scale = (self.start * (1 + self.delta)).detach()
        codes = (self.latent().detach() / scale[..., None] + self.middle).round().clamp(0, self.top)
        return scale, None, codes
