"""Our codes as onnxruntime's `MatMulNBits` and `GatherBlockQuantized` store them, exactly.

    codes    uint8 [rows, blocks, block · bits / 8]       a row's codes, the first one in the lowest bits of a byte
    scales   float32 [rows, blocks]
    zeros    uint8 [rows, ceil(blocks · bits / 8)]        packed likewise; None where all are 2**(bits - 1)

A weight is scale · (code - zero), of 2, 4 or 8 bits, in blocks of 16 to 256 columns. Codes of 3 bits go into 4, those
of 5 to 7 into 8; a group that is no such block is several of them with one scale, a row's last block may be short.
Zero points that are halves are whole ones of twice the codes (`quantized.integers`). Source: ContribOperators.md and
matmul_nbits.cc of onnxruntime 1.31.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.quantized import integers
from lib.quantized.grid import Quantized

BITS = (2, 4, 8)
BLOCKS = (256, 128, 64, 32, 16)


class Packed(NamedTuple):
    """A matrix as the operators read it; see the head of this file."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    block: int
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors; scales count four bytes each."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros) if part is not None)


def refusal(matrix: Quantized) -> str | None:
    """Why the operators can't hold `matrix`, as the end of "it has ..."; None where they can."""
    if why := integers.refusal(matrix):
        return why
    if _block(matrix) is None:
        return f"groups of {matrix.group_size} columns, which no block of {BLOCKS[-1]} to {BLOCKS[0]} divides"
    return None


def pack(matrix: Quantized) -> Packed:
    """`matrix`, which `refusal` finds nothing wrong with, as the operators store it."""
    block, columns = _block(matrix), matrix.codes.shape[1]
    matrix = integers.integer(matrix)
    rows, groups = matrix.scale.shape
    bits = next(each for each in BITS if each >= matrix.bits)
    # of a symmetric grid, codes are shifted so that their middle is the operators' own, which is not stored
    shift = 2 ** (bits - 1) - 2 ** (matrix.bits - 1) if matrix.zero_point is None else 0
    codes = torch.nn.functional.pad(matrix.codes + shift, (0, -columns % block)).reshape(rows, -1, block)
    times = codes.shape[1] // groups
    scales = matrix.scale.float().repeat_interleave(times, 1)
    zeros = None if matrix.zero_point is None else packed(matrix.zero_point.repeat_interleave(times, 1), bits)
    return Packed(packed(codes, bits), scales.contiguous(), zeros, bits, block, columns)


def packed(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., count] of `bits` bits each as bytes [..., ceil(count · bits / 8)]."""
    each = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % each)).unflatten(-1, (-1, each))
    shifts = torch.arange(each, dtype=torch.uint8) * bits
    return (codes << shifts).sum(-1, dtype=torch.uint8).contiguous()


def unpacked(data: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `packed`: uint8 [..., count]."""
    shifts = torch.arange(8 // bits, dtype=torch.uint8) * bits
    return ((data[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]


def dense(codes: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, columns: int) -> Tensor:
    """The weights float32 [rows, columns] that the operators make of the three tensors."""
    rows, blocks = codes.shape[:2]
    block = codes.shape[2] * 8 // bits
    zero = 2 ** (bits - 1) if zeros is None else unpacked(zeros.reshape(rows, -1), bits, blocks).float()[..., None]
    values = (unpacked(codes, bits, block).float() - zero) * scales.float().reshape(rows, blocks, 1)
    return values.flatten(1)[:, :columns]


def _block(matrix: Quantized) -> int | None:
    """The largest block that divides a group; of one group a row, the largest that is not longer, or the smallest."""
    size, whole = matrix.codes.shape[1] // matrix.scale.shape[1], matrix.scale.shape[1] == 1
    found = next((each for each in BLOCKS if size % each == 0), None)
    return next((each for each in BLOCKS if each <= size), BLOCKS[-1]) if found is None and whole else found
