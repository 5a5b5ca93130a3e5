"""Weights for SignRound: a learned offset decides between rounding up and down, learned ends move each range.

    W̃ = s · (clip(⌊W/s + V⌉ + z, 0, 2^bits - 1) - z),  |V| ≤ 1/2
    s = (α · high - β · low) / (2^bits - 1),            z = ⌊-β · low / s⌉

Source: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs",
arXiv 2309.05516, with its symbols W, s, V, α and β. In the paper the range starts at the smallest and largest weight;
here low and high are the ends of any initial grid.
"""

import torch
from torch import Tensor

from lib.quantized.grid import AT_ONCE, Quantized
from lib.quantized.levels import nearest as closest
from lib.quantized.levels import reached, stored, to_level_
from lib.quantized.zero_points import typed

RANGE = (0.5, 1.5)  # allowed range of α and β
SLACK = 0.05  # how far from the middle between two codes a weight starts at least, in codes


class SignRoundWeight:
    """A layer's weights W [rows, columns] rounded with learned offsets V on learned ranges; starts at given codes.

    dense: the rounded values, in the dtype of W, as a tensor that requires gradients.
    """

    @torch.no_grad()
    def __init__(self, weight: Tensor, start: Quantized):
        rows, groups = start.scale.shape
        self.bits, self.size, self.top = start.bits, start.group_size, 2**start.bits - 1
        self.levels, self.symmetric = start.levels, start.zero_point is None
        self.scale, self.moves = start.scale.float(), bool(stored(start.bits, start.levels, self.symmetric).step)
        self.zero = torch.full_like(self.scale, 2 ** (start.bits - 1)) if self.symmetric else start.zero_point.float()
        self.low, self.high = -self.zero * self.scale, (self.top - self.zero) * self.scale
        self.alpha, self.beta = torch.ones_like(self.scale), torch.ones_like(self.scale)
        self.weight = reachable(weight.detach().float().view(rows, groups, -1), start)
        self.offset = torch.zeros_like(self.weight)  # V
        self.dense = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        self.fill_()
        self.dense.requires_grad_()

    def step_(self, gradient: Tensor, rate: float, range_rate: float) -> None:
        """Move V by `rate`, α and β by `range_rate`, against the signs of their gradients, given ∂L/∂W̃."""
        for part in self._parts():
            of_offset, of_alpha, of_beta = self.gradients(gradient[part], part)
            self.offset[part].sub_(of_offset.sign_(), alpha=rate).clamp_(-0.5, 0.5)
            self.alpha[part].sub_(of_alpha.sign_(), alpha=range_rate).clamp_(*RANGE)
            self.beta[part].sub_(of_beta.sign_(), alpha=range_rate).clamp_(*RANGE)
        self.fill_()

    def gradients(self, gradient: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """∂L/∂V up to the factor s > 0 [rows, groups, size], ∂L/∂α and ∂L/∂β [rows, groups], from G = ∂L/∂W̃.

        Rounding counts as the identity (straight through), so that inside the range ∂W̃/∂V = s and ∂W̃/∂s = q - W/s,
        with q the rounded code less z. Outside q is an end of the range, which moves: ∂W̃/∂s = q and ∂W̃/∂z = -s.
        """
        gradient = gradient.float().view_as(self.offset[part])
        scale, low = self.scale[part], self.low[part]
        nearest, code = self._codes(part)
        inside = gradient * (nearest == code)
        of_scale = code.mul_(gradient).sum(-1) - (inside * self.weight[part]).sum(-1) / scale
        outside = gradient.sum(-1) - inside.sum(-1)  # Σ G over clipped weights
        of_beta = torch.zeros_like(scale)
        if self.moves:  # ∂z/∂s = β low / s², ∂z/∂β = -low / s
            if self.levels == "half":  # whole codes reach all ranges; 0 where z is at its end
                outside *= reached(-self.beta[part] * low / scale, self.bits, self.levels)
            of_scale -= outside * self.beta[part] * low / scale
            of_beta = outside * low
        return inside, of_scale * self.high[part] / self.top, of_beta - of_scale * low / self.top

    @torch.no_grad()
    def fill_(self) -> None:
        """Recompute scale, zero point and rounded values from V, α and β; the scale is bfloat16, as it is stored."""
        low, high = self.beta * self.low, self.alpha * self.high
        self.scale = ((high - low) / self.top).to(torch.bfloat16).float()
        if self.moves:
            self.zero = closest(-low / self.scale, self.bits, self.levels)
        for part in self._parts():
            self.dense[part] = self._codes(part)[1].mul_(self.scale[part, :, None]).flatten(1)

    def quantized(self) -> Quantized:
        """Codes and grid, as they are now."""
        codes = torch.empty(self.dense.shape, dtype=torch.uint8, device=self.dense.device)
        for part in self._parts():
            codes[part] = self._codes(part)[1].add_(self.zero[part, :, None]).flatten(1).to(torch.uint8)
        zero = None if self.symmetric else typed(self.zero, self.levels)
        return Quantized(codes, self.scale.to(torch.bfloat16), zero, self.bits, self.size, levels=self.levels)

    def _codes(self, part: slice) -> tuple[Tensor, Tensor]:
        """⌊W/s + V⌉, and the same clipped to the range of codes, both minus z."""
        zero = self.zero[part, :, None]
        moved = torch.addcdiv(self.offset[part], self.weight[part], self.scale[part, :, None])
        nearest = to_level_(moved, None if self.levels == "integer" else zero)
        return nearest, (nearest + zero).clamp_(0, self.top).sub_(zero)

    def _parts(self) -> list[slice]:
        """Rows whose elements fit the caches together."""
        count = max(1, AT_ONCE // self.dense.shape[1])
        return [slice(start, start + count) for start in range(0, len(self.dense), count)]


def reachable(weight: Tensor, start: Quantized) -> Tensor:
    """`weight` [rows, groups, size], moved where it must be to round to the codes of `start` with `SLACK` to spare.

    Codes of a method that compensates may lie several steps from their weights. The smallest move preserves on which
    side of its code a weight lies.
    """
    scale = start.scale.float()[..., None]
    codes = start.codes.view_as(weight).float()
    zero = 2 ** (start.bits - 1) if start.zero_point is None else start.zero_point.float()[..., None]
    lower = torch.where(codes > 0, (codes - zero - 0.5 + SLACK) * scale, -torch.inf)
    upper = torch.where(codes < 2**start.bits - 1, (codes - zero + 0.5 - SLACK) * scale, torch.inf)
    return weight.clamp(lower, upper)
