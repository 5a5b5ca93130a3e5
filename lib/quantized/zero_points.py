"""Zero points in memory and as they are stored: `levels` says which there are."""

import torch
from torch import Tensor

from lib.quantized import levels as kinds
from lib.quantized import pairs

WHOLE = ("integer", pairs.LEVELS)  # whose zero points (of pairs: numbers of books) are stored as they are


def typed(zero: Tensor, levels: str) -> Tensor:
    """Zero points in the type that they have in memory: uint8, or float16 where they may be halves."""
    return zero.to(torch.uint8 if levels in WHOLE else torch.float16)


def stored(zero_point: Tensor | None, *, bits: int, levels: str) -> Tensor | None:
    """The numbers of `bits` bits that stand for zero points, uint8 [rows, groups]; None where the grid implies them."""
    if zero_point is None or levels in WHOLE:
        return zero_point
    first, step = kinds.stored(bits, levels)
    return zero_point.float().sub_(first).div_(step).to(torch.uint8) if step else None


def restored(found: Tensor | None, scale: Tensor, *, bits: int, levels: str) -> Tensor | None:
    """The zero points of what `stored` made of them, beside their scale [rows, groups]."""
    if levels in WHOLE:
        return found
    first, step = kinds.stored(bits, levels)
    if not step:
        return torch.full(scale.shape, first, dtype=torch.float16, device=scale.device)
    return found.to(torch.float16).mul_(step).add_(first)
