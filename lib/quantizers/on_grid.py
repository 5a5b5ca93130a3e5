"""GPTQ and SignRound on the grids of llama.cpp's files (`quantized.gguf_types`): scales first, then codes.

The scales are chosen as the file will hold them, in half precision or as the whole numbers of a superblock, and codes
are then chosen on the grid that they make. GPTQ's errors (arXiv 2210.17323) are therefore those of the file, and are
compensated in the columns that follow. SignRound's offsets (arXiv 2309.05516) move along the places of the levels: a
code's place is its rank among them, between two levels it is in between, so that rounding a place is rounding to the
nearest level, however the levels are spaced.
"""

import torch
from torch import Tensor

from lib.quantized import gguf_types
from lib.quantized.gguf_types import kinds
from lib.quantizers.gptq import BLOCK, inverse_factor, revived
from lib.quantizers.signround_layer import RANGE, SLACK


@torch.no_grad()
def rtn(weight: Tensor, kind: str, importance: Tensor | None = None) -> gguf_types.Blocks:
    """`weight` [rows, columns] rounded to nearest on the grid that errs least, weighted by `importance` [columns]."""
    made = gguf_types.by_name(kind)
    grid = made.choose(weight.float(), importance)
    return gguf_types.Blocks(kind, made.pack(grid, gguf_types.nearest(weight, grid)))


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, kind: str) -> gguf_types.Blocks:
    """`weight` [rows, columns] so that its outputs change least under `hessian` [columns, columns]."""
    made = gguf_types.by_name(kind)
    hessian, dead = revived(hessian)
    weight = weight.float().masked_fill(dead, 0)
    grid = made.choose(weight, hessian.diagonal())
    order = hessian.diagonal().argsort(descending=True, stable=True)
    upper = inverse_factor(hessian[order][:, order])
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    codes[:, order] = _columns(weight[:, order], upper, grid, order // made.group)
    return gguf_types.Blocks(kind, made.pack(grid, codes))


def _columns(weight: Tensor, upper: Tensor, grid: gguf_types.Grid, group: Tensor) -> Tensor:
    """Algorithm 1 of the paper: codes [rows, columns]; column j has the scales of `group[j]`."""
    rest = weight.T.contiguous()
    step = grid.step.T.contiguous()[group]
    inverse = torch.where(step == 0, 0, 1 / step)
    base = torch.zeros_like(step) if grid.base is None else grid.base.T.contiguous()[group]
    codes, diagonal = torch.empty(rest.shape, dtype=torch.uint8), upper.diagonal().tolist()
    for start in range(0, len(rest), BLOCK):
        part, factor = rest[start : start + BLOCK], upper[start : start + BLOCK, start : start + BLOCK]
        errors = torch.empty_like(part)
        for j, w in enumerate(part):
            at = start + j
            chosen = kinds.code_of((w - base[at]) * inverse[at], grid.levels).long()
            codes[at] = chosen
            errors[j] = (w - (grid.levels[chosen] * step[at] + base[at])) / diagonal[at]
            part[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
        rest[start + BLOCK :].addmm_(upper[start : start + BLOCK, start + BLOCK :].T, errors, alpha=-1)
    return codes.T.contiguous()


class GridWeight:
    """A layer's weights W [rows, columns] on a file's grid with learned offsets V; starts at given codes.

    dense: the rounded values, in the dtype of W, as a tensor that requires gradients. Where a group has a step in half
    precision and nothing else, a factor α of it is learned too, and the step is rounded to half precision each time.
    """

    @torch.no_grad()
    def __init__(self, weight: Tensor, start: gguf_types.Blocks):
        self.kind, (self.grid, codes) = start.kind, start.unpack()
        self.ordered, rank = self.grid.levels.unique(return_inverse=True)
        self.code = torch.empty(len(self.ordered), dtype=torch.uint8)
        self.code[rank.flip(0)] = torch.arange(len(rank), dtype=torch.uint8).flip(0)
        self.even, self.last = kinds.is_even(self.grid.levels), len(self.ordered) - 1
        self.first = self.grid.step[..., None]  # the steps that α multiplies
        self.base = 0 if self.grid.base is None else self.grid.base[..., None]
        self.moves = set(self.grid.stored) == {"d"} and self.kind != "MXFP4"
        self.alpha, self.step = torch.ones_like(self.first), self.first
        rank = rank[codes.long()].view(*self.grid.step.shape, -1).float()
        place = self._place(self._ratio(weight.detach().float().view(rank.shape) - self.base))
        low = torch.where(rank > 0, rank - 0.5 + SLACK, -torch.inf)
        place = place.clamp(low, torch.where(rank < self.last, rank + 0.5 - SLACK, torch.inf))
        self.weight = self._level(place) * self.first  # without the base, moved where it must be to give these codes
        self.offset = torch.zeros_like(self.weight)  # V
        self.dense = torch.empty(weight.shape, dtype=weight.dtype)
        self.fill_()
        self.dense.requires_grad_()

    def step_(self, gradient: Tensor, rate: float, range_rate: float) -> None:
        """Move V by `rate` and α by `range_rate` against the signs of their gradients, given ∂L/∂W̃."""
        gradient = gradient.float().view(self.offset.shape)
        place, rank = self._ranks()
        inside = gradient * (place == rank)
        if self.moves:  # ∂W̃/∂s is the level less W/s inside of the range, and the level at its ends
            of_step = (self.ordered[rank.long()] * gradient - self._ratio(self.weight) * inside).sum(-1, keepdim=True)
            self.alpha.sub_((of_step * self.first).sign_(), alpha=range_rate).clamp_(*RANGE)
        self.offset.sub_((inside * self.step).sign_(), alpha=rate).clamp_(-0.5, 0.5)
        self.fill_()

    @torch.no_grad()
    def fill_(self) -> None:
        """Recompute steps and rounded values from V and α."""
        if self.moves:
            self.step = kinds.half(self.first * self.alpha)
        self.dense.copy_((self.ordered[self._ranks()[1].long()] * self.step + self.base).view(self.dense.shape))

    def quantized(self) -> gguf_types.Blocks:
        """The matrix as it is now."""
        codes = self.code[self._ranks()[1].long()].view(self.dense.shape)
        step = self.step[..., 0]
        grid = self.grid._replace(step=step, stored={"d": step}) if self.moves else self.grid
        return gguf_types.Blocks(self.kind, gguf_types.TYPES[self.kind].pack(grid, codes))

    def _ranks(self) -> tuple[Tensor, Tensor]:
        """⌊place + V⌉, and the same within the levels."""
        nearest = (self._place(self._ratio(self.weight)) + self.offset).round_()
        return nearest, nearest.clamp(0, self.last)

    def _ratio(self, weight: Tensor) -> Tensor:
        return torch.where(self.step == 0, 0, weight / self.step)

    def _place(self, ratio: Tensor) -> Tensor:
        """Where `ratio` lies among the levels, in ranks; beyond them as the outermost two go on."""
        if self.even:
            return ratio - self.ordered[0]
        below = (torch.bucketize(ratio, self.ordered) - 1).clamp_(0, self.last - 1)
        first = self.ordered[below]
        return below + (ratio - first) / (self.ordered[below + 1] - first)

    def _level(self, place: Tensor) -> Tensor:
        """The inverse of `_place`."""
        if self.even:
            return place + self.ordered[0]
        below = place.floor().clamp_(0, self.last - 1).long()
        first = self.ordered[below]
        return first + (place - below) * (self.ordered[below + 1] - first)
