"""Zero-point quantization: the codes span minimum to maximum, and one of them, the zero point, stands for zero.

    scale = (max X - min X) / (2**bits - 1),  zero = round(-min X / scale),  X_q = round(X / scale) + zero

A skewed distribution uses all codes that way, where absmax wastes those on its shorter side; the cost is the zero
point. The range always includes zero, so that zero is exact and its code fits into the bits of a code.
Source: Dettmers et al., "LLM.int8()", arXiv 2208.07339, section 2.1, zeropoint quantization (with codes from 0 up).
"""

import torch
from torch import Tensor, nn

from lib.quantized.grid import Quantized, choose, fitted, quantize
from lib.quantizers.absmax import WHOLE, round_, whole


@torch.no_grad()
def quantize_(
    model: nn.Module,
    calibration=None,
    *,
    bits: int,
    group_size: int = -1,
    state=None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: not used, part of the common signature. bits: 2 to 8. group_size: columns that share a grid; -1 gives
    each row one ("per row"), 0 gives the whole matrix one ("per tensor"). Per row and per group this is what `rtn` does
    without a search; per tensor is the textbook's first step. state: folder that keeps finished blocks, so that a
    killed job resumes.
    """
    return round_(model, zero_point, bits=bits, group_size=group_size, state=state)


def zero_point(weight: Tensor, *, bits: int, group_size: int) -> Quantized:
    """Round `weight` [rows, columns] to the grids that its minima and maxima span; `group_size` as in `quantize_`.

    Raises ValueError for bits or a group size that do not fit, and for weights that are not finite.
    """
    if group_size == WHOLE:
        return whole(zero_point, weight, bits=bits)
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    scale, zero = choose(weight, bits=bits, group_size=size)
    return Quantized(quantize(weight, scale, zero, bits=bits), scale, zero, bits, size)
