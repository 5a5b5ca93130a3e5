"""Numbers of keys and values with 16, 8 or 4 bits, as cache.h stores them.

With 8 and 4 bits every key and every value of a head has a grid of its own, x ≈ scale · code + least, two bfloat16
numbers beside its codes. On the packaged model and 2,048 tokens of WikiText-2 that cost 0.0004 nats a token with 8 bits
(0.0006 on a grid around zero, 0.00004 with bfloat16), and 0.13 with 4, of which keys that are turned by Hadamard's
matrix save more than half (0.06; turning values too, or a grid around zero, was no better). Turned keys meet queries
that are turned as well, so their products stay what they were.

Nearly all of that is the keys: 4 bits for the values alone cost 0.005.
"""

import numpy as np

from lib.runtime.architecture import Architecture

BITS = (16, 8, 4)
GROUP = 16  # keys of so many positions lie together


def bytes_a_position(architecture: Architecture, bits: int = 16) -> int:
    """Bytes that keys and values of one token take, in all blocks."""
    key, value, grids = widths(architecture.size, bits)
    return architecture.blocks * architecture.key_heads * (key + value + 2 * grids)


def widths(size: int, bits: int) -> tuple[int, int, int]:
    """Bytes of a head's key, of its value, and of the grid of either."""
    return size * bits // 8, (-(-size // 32) * 16 if bits == 4 else size * bits // 8), 0 if bits == 16 else 4


def check_bits(bits: int) -> None:
    """Raise ValueError for bits that keys and values can't have."""
    if isinstance(bits, bool) or bits not in BITS:
        raise ValueError(f"cache_bits={bits!r}; keys and values have 16, 8 or 4 bits; choose one of these.")


def turned(x: np.ndarray) -> np.ndarray:
    """x [..., size] times Hadamard's matrix of the largest power of two in the size, as cache.h computes it."""
    size = x.shape[-1]
    block, half, x = size & -size, 1, np.array(x, np.float32)
    while half < block:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        first, second = pairs[..., 0, :].copy(), pairs[..., 1, :].copy()
        pairs[..., 0, :], pairs[..., 1, :] = first + second, first - second
        half *= 2
    return x * (np.float32(1) / np.sqrt(np.float32(block)))


def codes(x: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """(codes, scales, least values) of float32 x [..., size] as they are stored; with 16 bits bfloat16 alone."""
    if bits == 16:
        bits_of = x.view(np.uint32)
        return (((bits_of + 0x7FFF + ((bits_of >> 16) & 1)) >> 16).astype(np.uint16),)
    top, least = np.float32(2**bits - 1), _outwards(x.min(-1), up=False)
    scale = _outwards((x.max(-1) - floats(least)) / top, up=True)
    step = floats(scale)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
    found = np.rint((x - floats(least)[..., None]) * inverse[..., None]).clip(0, top)
    return found.astype(np.uint8), scale, least


def _outwards(x: np.ndarray, up: bool) -> np.ndarray:
    """The bits of the nearest bfloat16 that is not above x, or with `up` not below it."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.where((bits >> 31 != 0) != up, np.uint32(0xFFFF), np.uint32(0))) >> 16).astype(np.uint16)


def floats(bits: np.ndarray) -> np.ndarray:
    """float32 of the bits of bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def folded(numbers: np.ndarray, bits: int, half: int) -> np.ndarray:
    """Bytes of 4-bit codes [..., size]: of each two times `half` of them, the second half above the first."""
    if bits != 4:
        return numbers
    short = -numbers.shape[-1] % (2 * half)
    pairs = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, short)])
    pairs = pairs.reshape(*numbers.shape[:-1], -1, 2, half)
    return (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(*numbers.shape[:-1], -1)


def unfolded(stored: np.ndarray, bits: int, half: int) -> np.ndarray:
    """The codes in bytes that `folded` made."""
    if bits != 4:
        return stored
    parts = stored.reshape(*stored.shape[:-1], -1, 1, half)
    return np.concatenate([parts & 15, parts >> 4], -2).reshape(*stored.shape[:-1], -1)
