"""Which of our grids XNNPACK's 4-bit linear layers hold exactly: codes of -8 to 7 in groups of a multiple of 32.

A weight is scale · code with a code of -8 to 7 and a bfloat16 scale. So symmetric grids of up to 4 bits fit, and any
of up to 3 bits, and of 4 where no code is 8 or more above its zero point or more than 8 below it.
"""

import torch
from torch import Tensor

from lib.quantized import integers
from lib.quantized.grid import Quantized

MULTIPLE = 32
LOW, HIGH = -8, 7


def refusal(matrix: Quantized) -> str | None:
    """Why the layers can't hold `matrix`, as the end of "it has ..."; None where they can."""
    size = matrix.codes.shape[1] // matrix.scale.shape[1]
    if matrix.codebook is not None:
        return f"a codebook of {2**matrix.bits} levels, which are not evenly spaced"
    if size % MULTIPLE:
        return f"groups of {size} columns, which {MULTIPLE} does not divide"
    if not torch.equal(matrix.scale.to(torch.bfloat16).float(), matrix.scale.float()):
        return "scales beyond bfloat16"
    if matrix.levels != "integer" and matrix.bits > integers.MOST:
        return f"{matrix.bits} bits with zero points that are halves"
    low, high = (int(each) for each in _whole(integers.integer(matrix)).aminmax())
    if low < LOW or high > HIGH:
        return f"whole numbers from {low} to {high} times its scales"
    return None


def signed(matrix: Quantized) -> tuple[Tensor, Tensor, int]:
    """(codes int8 [rows, columns] of -8 to 7, scale float32 [rows, groups], columns of a group)."""
    matrix = integers.integer(matrix)
    return _whole(matrix).to(torch.int8), matrix.scale.float(), matrix.codes.shape[1] // matrix.scale.shape[1]


def _whole(matrix: Quantized) -> Tensor:
    """The codes less their zero points, int16."""
    rows, columns = matrix.codes.shape
    zero = 2 ** (matrix.bits - 1) if matrix.zero_point is None else matrix.zero_point.to(torch.int16)[..., None]
    return (matrix.codes.to(torch.int16).reshape(rows, matrix.scale.shape[1], -1) - zero).reshape(rows, columns)
