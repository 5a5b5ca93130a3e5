"""GGUF's blocks of 32 weights, and which of them holds our codes exactly.

    type   bits a weight   a block's values
    Q4_0   4.5             d (u - 8), u of 0 to 15
    Q4_1   5.0             d u + m
    Q5_0   5.5             d (u - 16), u of 0 to 31
    Q5_1   6.0             d u + m
    Q8_0   8.5             d u, u of -128 to 127

d and m are half precision, and d may be negative. A weight s (q - z) of ours is a step s times the whole number q - z;
where z is a half, s / 2 times 2 q - 2 z. A block holds it exactly if 32 neighbours share a step, if their whole numbers
fit (negated where that helps), and if half precision holds the step: of our bfloat16 scales that is every one from
2**-14 to 2**16, and below, multiples of 2**-24. Source: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from typing import NamedTuple

import numpy
import torch

from lib.quantized.grid import Quantized

SIZE = 32  # weights of a block


class Kind(NamedTuple):
    """A type of block: bits of a code, the code that stands for zero, None where a minimum is stored, and bytes."""

    bits: int
    centre: int | None
    nbytes: int


KINDS = {
    "Q4_0": Kind(4, 8, 18),
    "Q4_1": Kind(4, None, 20),
    "Q5_0": Kind(5, 16, 22),
    "Q5_1": Kind(5, None, 24),
    "Q8_0": Kind(8, 128, 34),
}


class Levels(NamedTuple):
    """Weights as `step` times whole numbers: `whole` int16 [blocks, 32], `step` float32 [blocks], and their rows."""

    whole: numpy.ndarray
    step: numpy.ndarray
    rows: int


class Held(NamedTuple):
    """A type that holds a matrix, and the largest absolute error, 0.0 where every weight is exact."""

    kind: str
    error: float


def levels(matrix: Quantized) -> Levels | str:
    """The blocks of 32 of `matrix`; a text instead, saying why there are none."""
    rows, columns = matrix.codes.shape
    if matrix.codebook is not None:
        return f"a codebook of {2**matrix.bits} levels, which are not evenly spaced"
    if columns % SIZE:
        return f"{columns} columns, which {SIZE} does not divide"
    centre = torch.tensor(float(2 ** (matrix.bits - 1)))
    zero = centre.expand(matrix.scale.shape) if matrix.zero_point is None else matrix.zero_point.float()
    twice = 2 if bool((zero != zero.round()).any()) else 1
    size = columns // matrix.scale.shape[1]
    whole = (twice * matrix.codes.to(torch.int16)).reshape(rows, -1, size) - (twice * zero).to(torch.int16)[..., None]
    step = (matrix.scale.float() / twice)[..., None].expand(rows, -1, size).reshape(-1, SIZE)
    if not torch.equal(step, step[:, :1].expand_as(step)):
        return f"groups of {size} columns with different scales inside of blocks of {SIZE}"
    return Levels(whole.reshape(-1, SIZE).numpy(), step[:, 0].contiguous().numpy(), rows)


def choose(found: Levels) -> Held | None:
    """The smallest type that holds the weights exactly, or else the smallest that holds all but their scales' last
    bits; None where none has as many codes, or where half precision can't reach a scale."""
    nearly = None
    for name in KINDS:
        blocks = _blocks(found, name)
        if blocks is not None:
            error = _error(found, *blocks)
            if error == 0:
                return Held(name, 0.0)
            nearly = nearly or Held(name, error)
    return nearly


def pack(found: Levels, name: str) -> numpy.ndarray:
    """The bytes of the matrix in the type `name`, uint8 [rows, bytes]; it is one that `choose` found."""
    kind = KINDS[name]
    counts, scale, minimum = _blocks(found, name)
    parts = [scale[:, None].view(numpy.uint8)]
    if kind.centre is None:
        parts.append(minimum[:, None].view(numpy.uint8))
    if kind.bits == 8:  # stored with their sign
        parts.append(counts.astype(numpy.int8).view(numpy.uint8))
    else:
        codes = (counts + (kind.centre or 0)).astype(numpy.uint8)
        if kind.bits == 5:
            parts.append(numpy.packbits(codes >> 4, axis=1, bitorder="little"))
        parts.append(codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4)
    return numpy.concatenate(parts, axis=1).reshape(found.rows, -1)


def _blocks(found: Levels, name: str):
    """(counts int16 [blocks, 32], scale and minimum float16 [blocks]): weights are scale times counts plus minimum.

    None if they don't fit into the type.
    """
    kind = KINDS[name]
    low, high = found.whole.min(1), found.whole.max(1)
    with numpy.errstate(over="ignore"):
        scale = numpy.where((low == 0) & (high == 0), 0, found.step).astype(numpy.float16)
    if not numpy.isfinite(scale).all():
        return None
    if kind.centre is None:
        return _with_minimum(found, scale, low, high, 2**kind.bits - 1)
    plain = (low >= -kind.centre) & (high < kind.centre)
    turned = ~plain & (low > -kind.centre) & (high <= kind.centre)
    if not (plain | turned).all():
        return None
    sign = numpy.where(turned, -1, 1).astype(numpy.int16)
    return found.whole * sign[:, None], scale * sign.astype(numpy.float16), numpy.zeros_like(scale)


def _with_minimum(found: Levels, scale, low, high, top: int):
    """As `_blocks`; of the minima from which all weights are reached, one that half precision holds is taken."""
    if (high - low > top).any():
        return None
    low = low.astype(numpy.int32)
    base, exact = low, _is_half(found.step * low)
    for below in range(1, top + 1):
        better = ~exact & (high - low + below <= top) & _is_half(found.step * (low - below))
        base, exact = numpy.where(better, low - below, base), exact | better
    with numpy.errstate(over="ignore"):
        minimum = (found.step * base).astype(numpy.float16)
    if not numpy.isfinite(minimum).all():
        return None
    return found.whole - base[:, None].astype(numpy.int16), scale, minimum


def _is_half(values) -> numpy.ndarray:
    with numpy.errstate(over="ignore"):
        return values.astype(numpy.float16).astype(numpy.float32) == values


def _error(found: Levels, counts, scale, minimum) -> float:
    """The largest difference of a stored weight from ours."""
    stored = scale.astype(numpy.float32)[:, None] * counts + minimum.astype(numpy.float32)[:, None]
    return float(numpy.abs(stored - found.step[:, None] * found.whole).max(initial=0.0))
