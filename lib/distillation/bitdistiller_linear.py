"""BitDistiller's layers: latent weights whose own range is the grid, anew in each pass.

    2 bits, affine       s = (max V - min V) / (2ᵇ - 1),  z = ⌊-min V / s⌉,  W = s (clamp(⌊V / s⌉ + z, 0, 2ᵇ - 1) - z)
    codebook (NF3)       s = max |V|,                     W = s · the nearest level of V / s

for each group, with the gradient of W taken for that of V. V begins at the original weights clipped to the start's
ranges, which are chosen by a search (`quantizers.clip`): asymmetric clipping before training.

Source: Du et al., "BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via Self-Distillation", arXiv 2402.10631,
section 3.1 and appendix; its NF grids have one scale for each sign, ours have one for both.
"""

import torch
from torch import Tensor

from lib.distillation.latent_linear import LatentLinear, straight
from lib.quantized.grid import spanning, usable
from lib.quantized.linear import QuantLinear


class BitDistillerLinear(LatentLinear):
    """A `QuantLinear` whose grid follows its latent weights; only they are trained."""

    METHOD = "bitdistiller"

    def __init__(self, layer: QuantLinear, dtype: torch.dtype, *, code_rate: float, original: Tensor | None = None):
        self.symmetric = layer.zero_point is None and layer.levels == "integer"
        super().__init__(layer, dtype, code_rate=code_rate, original=original)
        if layer.codebook is not None:
            self.unit *= 2 / self.top  # the mean distance of two levels from -1 to 1

    def started(self, weight: Tensor) -> Tensor:
        """The weights inside the range of the start's grid."""
        scale, book = self.layer.scale.float()[..., None], self.layer.codebook
        if book is not None:
            return weight.maximum(book[0] * scale).minimum(book[-1] * scale)
        zero = 2.0 ** (self.layer.bits - 1) if self.symmetric else self.layer.zero_point.float()[..., None]
        return weight.maximum(-zero * scale).minimum((self.top - zero) * scale)

    def _grid(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point [rows, groups, 1] of the latents' own range, which includes zero."""
        if self.layer.codebook is not None:
            scale = usable(latent.abs().amax(-1, keepdim=True)).float()
            return scale, torch.zeros_like(scale)
        low, high = latent.amin(-1, keepdim=True).clamp(max=0), latent.amax(-1, keepdim=True).clamp(min=0)
        scale, zero = spanning(low, high, self.layer.bits, self.symmetric, self.layer.levels)
        return scale.float(), zero

    def _codes(self, latent: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        book = self.layer.codebook
        if book is not None:
            return torch.bucketize(latent / scale, (book[1:] + book[:-1]) / 2)
        return (latent / scale + zero).round_().clamp_(0, self.top)

    def fake(self) -> Tensor:
        """The rounded weight."""
        latent = self.latent()
        with torch.no_grad():
            scale, zero = self._grid(latent)
            codes, book = self._codes(latent, scale, zero), self.layer.codebook
            values = (codes - zero if book is None else book[codes]) * scale
        return straight(latent, values)

    def stored(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The grid of the latents as they are now, and their codes."""
        latent = self.latent().detach()
        scale, zero = self._grid(latent)
        codes = self._codes(latent, scale, zero)
        return scale[..., 0], None if self.layer.zero_point is None else zero[..., 0], codes
