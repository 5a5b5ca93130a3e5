"""Where zero lies among the codes of a grid, w ≈ scale · (q - z) with codes q from 0 to 2**bits - 1.

    integer    z is a whole code: zero is a value of the grid, and of four values two lie on one side of it, one on
               the other (llama.cpp's Q2_0 with a scale of either sign)
    half       z is a multiple of a half, which costs the same bytes: where z is no whole code, both sides are alike,
               and zero lies between two values
    balanced   z is the centre (2**bits - 1) / 2 of every group, so that nothing is stored: -1.5, -0.5, 0.5 and 1.5
               scales at 2 bits

A zero point is stored in as many bits as a code, c from 0 to 2**bits - 1. Halves therefore reach half as far as whole
codes: z = 2**(bits-2) + c / 2, which is 1, 1.5, 2 and 2.5 at 2 bits, 2 to 5.5 at 3, and 4 to 11.5 at 4. Ranges that
need another z, with more than two thirds of them on one side of zero, get a wider scale instead.

On the packaged model (GPTQ, groups of 64, 8 windows to calibrate, 4 to test) halves lower the KL divergence, in nats a
token on WikiText-2 and on C4 and paired by draws: at 2 bits by 0.313 ± 0.078 of 1.801 and 0.289 ± 0.056 of 2.393 (four
draws), at 3 bits by 0.054 ± 0.010 of 0.401 and 0.135 ± 0.004 of 0.622 (three). Balanced levels raise it, by 0.46 and
0.31 on WikiText-2 in two draws at 2 bits, although they err less there on each weight by itself than whole codes do.
Refined by SignRound halves stay ahead at 2 bits (`quantizers.best`, whose setting they are there).

Balanced levels: Liu et al., "ParetoQ: Scaling Laws in Extremely Low-bit LLM Quantization", arXiv 2502.02631. Torch is
not imported here: a process that only runs a packed model does without.
"""

from typing import NamedTuple

from lib.quantized import pairs

LEVELS = {
    "integer": "zero points are whole codes",
    "half": "zero points are multiples of a half",
    "balanced": "no zero points, values on both sides alike",
}


class Zero(NamedTuple):
    """How zero points are stored: as numbers c that stand for z = first + step · c; with step 0 none are stored."""

    first: float
    step: float


def check(levels: str, symmetric: bool = False) -> None:
    """Raise ValueError for levels that do not exist, and for those that a `symmetric` grid can't have."""
    if not isinstance(levels, str) or levels not in LEVELS:
        said = "; ".join(f"{name!r}: {meaning}" for name, meaning in LEVELS.items())
        raise ValueError(f"levels={levels!r} of a grid; allowed are {said}; choose one of them.")
    if symmetric and levels != "integer":
        raise ValueError(
            f"levels={levels!r} with symmetric=True, whose zero is the code 2**(bits - 1); symmetric grids have "
            "levels='integer'; leave out one of the two arguments."
        )


def stored(bits: int, levels: str, symmetric: bool = False) -> Zero:
    """How a grid with these `levels` stores its zero points."""
    if levels == pairs.LEVELS:  # the number of a book
        return Zero(0, 1)
    if levels == "balanced":
        return Zero((2**bits - 1) / 2, 0)
    if levels == "half":
        return Zero(2 ** (bits - 2), 0.5)
    return Zero(2 ** (bits - 1), 0) if symmetric else Zero(0, 1)


def nearest(zero, bits: int, levels: str):
    """The zero points that these `levels` allow, next to real ones; a float tensor of the same shape."""
    first, step = stored(bits, levels)
    if not step:
        return zero.new_full(zero.shape, first)
    return zero.sub(first).div_(step).round_().clamp_(0, 2**bits - 1).mul_(step).add_(first)


def reached(zero, bits: int, levels: str):
    """Which of these real zero points lie among those that the `levels` have, and which of them beyond."""
    first, step = stored(bits, levels)
    return (zero >= first - step / 2) & (zero <= first + (2**bits - 0.5) * step)


def widened(scale, zero, low, high, bits: int):
    """`scale`, and a larger one where `zero` lies so far from the best that codes do not reach from `low` to `high`."""
    above = 2**bits - 1 - zero
    reached = (-low <= scale * (zero + 0.5)) & (high <= scale * (above + 0.5))
    return scale.where(reached, (low / -zero).maximum(high / above))


def to_level_(ratio, zero=None):
    """Round `ratio` = w / scale, in place, to the nearest q - z with a whole q.

    zero: float zero points that may be halves; None where all are whole codes.
    """
    if zero is None:
        return ratio.round_()
    part = zero.frac()  # 0 or a half
    return ratio.add_(part).round_().sub_(part)
