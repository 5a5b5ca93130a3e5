"""Numbers in bfloat16, as their bits: float32 without its last 16 bits, rounded; no torch."""

import numpy as np


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to bfloat16 (to nearest, ties to even), uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def check(bits: np.ndarray, name: str) -> None:
    """Raise ValueError where rounding has made infinity of finite weights; bits: uint16, of any shape."""
    if ((bits & np.uint16(0x7FFF)) == 0x7F80).any():
        raise ValueError(
            f"{name} holds numbers above 3.39e38, the largest of bfloat16, in which the packed layout keeps plain "
            "weights; run this model unpacked in float32, or get another copy."
        )
