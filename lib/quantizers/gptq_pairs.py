"""GPTQ on pairs of columns: both get the entry of a codebook that leaves the least error behind (`quantized.pairs`).

GPTQ rounds a column, divides what is left over by the column's entry of H⁻¹, and takes that out of the columns that
follow. With two columns at once, an entry costs what remains after the second has made up for the first: with U the
upper factor of H⁻¹ = Uᵀ U, columns a and b, and errors e = w - entry,

    x = e_a / U_aa,   y = (e_b - U_ab x) / U_bb,   cost x² + y²

so that the pair is chosen jointly, and both errors are taken out of the rest as in GPTQ's equation 3. The codebooks
are learned first, for the weights of this matrix and their columns' squared inputs, by Lloyd's algorithm: a group takes
the book and the scale that err least, then each entry becomes the mean of what took it.

On the packaged model (2 bits, groups of 64, 8 windows of WikiText-2 to calibrate, 8 to test; nats a token, paired by
three draws) pairs lower the KL divergence of half-integer zero points, which take the same bytes, by 0.404 ± 0.035 of
1.472 on WikiText-2, by 0.509 ± 0.041 of 2.134 on C4 and by 0.369 ± 0.033 of 1.744 on novels. A product of 1,536 x 576
weights takes 19 µs with one row of activations and 71 with sixteen, where halves take 21 and 67 (one thread of a busy
machine with AVX-512). What did not help: codebooks that learn in SignRound, entry by entry against the signs of their
gradients, which leave the error of unseen windows up to a tenth higher.

Sources: Frantar et al., "GPTQ", arXiv 2210.17323; van Baalen et al., "GPTVQ: The Blessing of Dimensionality for LLM
Quantization", arXiv 2402.15319, section 3, for several columns at once.
"""

import torch
from torch import Tensor

from lib.quantized import pairs
from lib.quantized.grid import HUGE, TINY, Quantized, fitted

BLOCK = 128  # columns whose errors are applied to the rest at once
SAMPLE = 1 << 11  # groups that the codebooks are learned from, at most
ALIKE, ROUNDS = 6, 8  # of Lloyd's algorithm: first as if all columns counted alike, which finds where pairs are
APART = 2  # rounds in which the books learn from groups that were drawn for them, so that they come to differ
RATIOS = (
    0.6,
    0.7,
    0.8,
    0.9,
    1.0,
    1.12,
    1.25,
    1.4,
)  # of a group's root mean square over its book's: tried for its scale
PARTS = 1 << 12  # groups that are tried at once


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, factor: Tensor, order: Tensor, *, group_size: int) -> Quantized:
    """Quantize `weight` [rows, columns] to pairs of 2 bits.

    hessian: [columns, columns], of which the diagonal weighs errors. factor: U of the Hessian in the `order` [columns]
    of `paired_order`.
    """
    rows, columns = weight.shape
    size = fitted(columns, bits=pairs.BITS, group_size=group_size)
    pairs.check(pairs.BITS, size, columns)
    weight, share = weight.float(), hessian.diagonal() / hessian.diagonal().mean()
    groups = torch.stack(pairs.together(weight), -1).view(-1, size // 2, 2)
    shares = torch.stack(pairs.together(share[None]), -1).view(1, -1, size // 2, 2).expand(rows, -1, -1, -1)
    shares = shares.reshape(groups.shape)
    book = learn(groups, shares)
    parts = [_fitted(*part, book.float()) for part in zip(groups.split(PARTS), shares.split(PARTS), strict=True)]
    scale, number = (torch.cat(part).view(rows, -1) for part in zip(*parts, strict=True))
    numbers = _columns(weight[:, order], factor, scale, number, order[::2] // size, book.float())
    entries = torch.empty_like(numbers)
    entries[:, order[::2] // pairs.EIGHT * pairs.APART + order[::2] % pairs.EIGHT] = numbers
    return Quantized(
        pairs.codes(entries), scale.to(torch.bfloat16), number.to(torch.uint8), pairs.BITS, size, book, pairs.LEVELS
    )


def paired_order(importance: Tensor) -> Tensor:
    """Columns, both of a pair side by side, the pairs with the largest `importance` [columns] first."""
    first, second = pairs.together(torch.arange(len(importance), device=importance.device)[None])
    mean = (importance[first[0]] + importance[second[0]]) / 2
    pick = mean.argsort(descending=True, stable=True)
    return torch.stack([first[0, pick], second[0, pick]], 1).flatten()


def learn(groups: Tensor, shares: Tensor, seed: int = 0) -> Tensor:
    """Codebooks, int8 `pairs.SHAPE`, for `groups` [count, pairs, 2] with errors weighed by `shares` of that shape."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(groups), generator=generator)[:SAMPLE].to(groups.device)
    groups, shares = groups[chosen], shares[chosen]
    groups = groups / _root_mean_square(groups)
    vectors = groups.flatten(0, 1)
    starts = torch.randint(len(vectors), (pairs.BOOKS * pairs.ENTRIES,), generator=generator).to(groups.device)
    books, alike = vectors[starts].view(pairs.SHAPE).clone(), torch.ones_like(shares)
    for step in range(ALIKE + ROUNDS):
        weights = alike if step < ALIKE else shares
        taken, errors = (torch.stack(part) for part in zip(*(_nearest(groups, weights, book) for book in books)))
        best = torch.arange(len(groups), device=groups.device) % pairs.BOOKS if step < APART else errors.argmin(0)
        for place in range(pairs.BOOKS):
            own = best == place
            books[place] = _means(groups[own], weights[own], taken[place][own], books[place], generator)
    top = books.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
    return (books * (pairs.MOST / top)).round().to(torch.int8)


def _means(groups: Tensor, shares: Tensor, taken: Tensor, book: Tensor, generator: torch.Generator) -> Tensor:
    """The weighted mean of the pairs that took each entry; an entry that none took becomes one of the pairs."""
    vectors, numbers, shares = groups.flatten(0, 1), taken.flatten(), shares.flatten(0, 1)
    if not len(vectors):
        return book
    sums = torch.zeros_like(book).index_add_(0, numbers, vectors * shares)
    weights = torch.zeros_like(book).index_add_(0, numbers, shares)
    drawn = vectors[torch.randint(len(vectors), (len(book),), generator=generator).to(vectors.device)]
    return torch.where(weights > 0, sums / weights.clamp(min=1e-20), drawn)


def _fitted(groups: Tensor, shares: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
    """(Scale, number of the book) of each of `groups` that err least, both [count]."""
    size, least = _root_mean_square(groups), None
    for number, book in enumerate(books):
        usual = size / book.square().mean().sqrt().clamp(min=1e-12)
        for ratio in RATIOS:
            scale = (usual * ratio).clamp(min=TINY).flatten()
            found = book[_nearest(groups / scale[:, None, None], shares, book)[0]]
            scale = (shares * groups * found).sum((1, 2)) / (shares * found.square()).sum((1, 2)).clamp(min=1e-20)
            scale = scale.clamp(TINY, HUGE).to(torch.bfloat16).float()
            _, errors = _nearest(groups / scale[:, None, None], shares, book)
            errors = errors * scale.square()
            if least is None:
                least, scales, numbers = errors, scale, torch.zeros_like(errors, dtype=torch.long)
                continue
            better = errors < least
            least, scales = torch.where(better, errors, least), torch.where(better, scale, scales)
            numbers = numbers.masked_fill(better, number)
    return scales, numbers


def _nearest(groups: Tensor, shares: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """(Entry of `book` nearest to each pair [count, pairs], weighted squared error of each group [count])."""
    parts = torch.cat([shares * groups, shares], -1) @ torch.cat([-2 * book, book.square()], 1).T
    least, taken = parts.min(-1)
    return taken, (least + (shares * groups.square()).sum(-1)).sum(-1).clamp_(min=0)


def _columns(weight: Tensor, upper: Tensor, scale: Tensor, number: Tensor, group: Tensor, books: Tensor) -> Tensor:
    """Entries, uint8 [rows, pairs], of `weight` [rows, columns] in `upper`'s order; pair p lies in group `group[p]`."""
    rest, taken = weight.T.contiguous(), []
    for start in range(0, len(rest), BLOCK):
        block = slice(start, start + BLOCK)
        part, factor = rest[block], upper[block, block]
        errors = torch.empty_like(part)
        for j in range(0, len(part), 2):
            place = group[(start + j) // 2]
            levels = books[number[:, place]] * scale[:, place, None, None]  # [rows, entries, 2]
            x = (part[j, :, None] - levels[..., 0]) / factor[j, j]
            y = (part[j + 1, :, None] - x * factor[j, j + 1] - levels[..., 1]) / factor[j + 1, j + 1]
            best = x.square().addcmul_(y, y).argmin(1, keepdim=True)
            errors[j], errors[j + 1] = x.gather(1, best)[:, 0], y.gather(1, best)[:, 0]
            part[j + 2 :].addmm_(factor[j : j + 2, j + 2 :].T, errors[j : j + 2], alpha=-1)
            taken.append(best)
        rest[start + BLOCK :].addmm_(upper[block, start + BLOCK :].T, errors, alpha=-1)
    return torch.cat(taken, 1).to(torch.uint8)


def _root_mean_square(groups: Tensor) -> Tensor:
    return groups.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
