"""Vector codes: neighbouring weights rounded together, to the nearest entry of a codebook that was learned for them.

A group has a scale, and takes the one of a few codebooks that fits it best: with four books the choice costs the two
bits of a zero point, so that pairs of weights with 16 entries have the bytes of half-integer zero points at 2 bits, but
for the books themselves, which are charged. What they are worth is measured here; no method stores them.

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
