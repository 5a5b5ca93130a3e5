"""Vector codes: neighbouring weights rounded together, to the nearest entry of a codebook that was learned for them.

A group has a scale, and takes the one of a few codebooks that fits it best: with four books the choice costs the two
bits of a zero point, so that pairs of weights with 16 entries have the bytes of half-integer zero points at 2 bits, but
for the books themselves, which are charged. What such codes are worth is measured here, before one is built.

Squared error as a share of the power, rounding to nearest at 2 bits, groups of 64, searched ranges. A Gaussian (256
rows of 576): half-integer zero points 0.108, one book of pairs 0.105, four 0.092, one book of fours 0.089. Packaged
model, first four blocks, 192 rows of each of the 16 matrices that share inputs, ratio to half-integer zero points
(weights; outputs on 8 windows of WikiText-2's training text; ± over matrices):

    whole zero points                                          2.281 bits   1.145 ± 0.008   1.06 ± 0.04
    pairs, four books                                          2.284 bits   0.831 ± 0.011   0.77 ± 0.04
    halves behind a Hadamard matrix of 64 columns              2.281 bits   0.935 ± 0.018   0.76 ± 0.06
    the same with random signs                                 2.283 bits   0.934 ± 0.018   0.76 ± 0.06
    Hadamard matrices of 128 (down_proj alone)                 2.281 bits   0.962 ± 0.009   0.92 ± 0.06
    groups of 96, and the saved bytes as a low rank in 8 bits  2.270 bits   1.023 ± 0.006   0.46 ± 0.07

The last row (of whole matrices) flatters its outputs: its rank was chosen by the same windows, which is what GPTQ does
with codes. Most of what a Hadamard matrix brings to outputs is in the first two blocks' attention. Pairs decode as fast
as halves, so they became a grid of their own: `quantized.pairs`, and `quantizers.gptq_pairs` for what they reach.

Sources: vector quantization of weights, e.g. AQLM (Egiazarian et al., arXiv 2401.06118) and VPTQ (Liu et al., arXiv
2409.17066); the codebooks are learned by Lloyd's algorithm (1982, doi:10.1109/TIT.1982.1056489).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.quantized.grid import fitted

SAMPLE = 1 << 13  # groups of weights that the codebooks are learned from, at most
RATIOS = (0.85, 1.0, 1.15)  # of the scale that fits best: tried for every group
AT_ONCE = 1 << 24  # distances that are computed at once


@dataclass(frozen=True)
class Coded:
    """A weight as its codes give it back: `values` like the weight, `bits` a weight with scales, choices and books."""

    values: Tensor
    bits: float


@torch.no_grad()
def code(
    weight: Tensor, *, bits: int = 2, dimension: int = 2, group_size: int = 64, books: int = 4, rounds: int = 12, seed=0
) -> Coded:
    """Round `weight` [rows, columns], `dimension` neighbours together, to entries of `books` codebooks.

    Each book has 2 ** (bits * dimension) entries. rounds: of learning. Raises ValueError for a dimension that does not
    divide the group, and for books of more than 4,096 entries.
    """
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    entries = 2 ** (bits * dimension)
    if dimension < 1 or size % dimension or books < 1 or entries > 4096:
        raise ValueError(
            f"dimension={dimension} of groups of {size} at {bits} bits, books={books}; a divisor of the group with at "
            "most 4,096 entries, and 1 book or more, are allowed; change them."
        )
    groups = weight.float().reshape(-1, size // dimension, dimension)
    values = learn(groups, entries, books, rounds, seed)
    found = torch.cat([_nearest(part, values) for part in groups.split(max(1, AT_ONCE // (size * entries)))])
    extra = (16 + math.ceil(math.log2(books))) / size + 16 * values.numel() / weight.numel()
    return Coded(found.view(weight.shape), bits + extra)


def learn(groups: Tensor, entries: int, books: int, rounds: int, seed: int) -> Tensor:
    """Codebooks [books, entries, dimension] for `groups` [count, vectors, dimension], each divided by its own scale."""
    generator = torch.Generator().manual_seed(seed)
    chosen = groups[torch.randperm(len(groups), generator=generator)[:SAMPLE]]
    chosen = chosen / _root_mean_square(chosen)
    vectors = chosen.flatten(0, 1)
    starts = torch.randint(len(vectors), (books * entries,), generator=generator)
    values = vectors[starts].view(books, entries, -1).clone()
    for step in range(rounds):
        each = [_assigned(chosen, book) for book in values]
        error = torch.stack([found[1] for found in each])
        # at first every book learns from a part of the groups that was drawn, so that they come to differ
        best = torch.arange(len(chosen)) % books if step < 2 else error.argmin(0)
        for place, (codes, _) in enumerate(each):
            own, taken = chosen[best == place].flatten(0, 1), codes[best == place].flatten()
            counts = torch.bincount(taken, minlength=entries)
            sums = torch.zeros_like(values[place]).index_add_(0, taken, own)
            used = counts > 0
            values[place][used] = sums[used] / counts[used, None]
            empty = int((~used).sum())
            if empty and len(own):
                values[place][~used] = own[torch.randint(len(own), (empty,), generator=generator)]
    return values


def _nearest(groups: Tensor, values: Tensor) -> Tensor:
    """The values [count, vectors, dimension] nearest to `groups` by the best book and scale of each."""
    size, least, best = _root_mean_square(groups), torch.full((len(groups),), math.inf), torch.zeros_like(groups)
    for book in values.bfloat16().float():
        for ratio in RATIOS:
            codes, _ = _assigned(groups / (size * ratio), book)
            for _ in range(2):  # a scale for the codes, and codes for the scale
                found = book[codes]
                scale = (groups * found).sum((1, 2)) / found.square().sum((1, 2)).clamp(min=1e-12)
                scale = scale.clamp(min=1e-12).bfloat16().float()[:, None, None]
                codes, _ = _assigned(groups / scale, book)
            found = book[codes] * scale
            error = (groups - found).square().sum((1, 2))
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better[:, None, None], found, best)
    return best


def _assigned(groups: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """(Nearest entries [count, vectors] of `book`, squared error of each group)."""
    distance = book.square().sum(1) - 2 * groups @ book.T
    least, codes = distance.min(-1)
    return codes, (least + groups.square().sum(-1)).sum(-1)


def _root_mean_square(groups: Tensor) -> Tensor:
    return groups.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
