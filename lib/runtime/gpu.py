"""Packed products on a GPU, in Triton: y = x Wᵀ with W read in the layout of `pack`, as it is.

That layout suits a GPU too: the 16 rows of a tile lie side by side, so that neighbouring threads read neighbouring
32-bit words, and a word holds four columns of one row, once (8 bits) up to four times (2 bits). One program takes one
tile: it walks over the lines of its units and multiplies each line's codes with the activations of their columns,

    y[b, r] = Σ_line scale[r, line] · (Σ_column code[r, column] · x[b, column] - zero[r, line] · Σ_column x[b, column])

in float32; unlike on the CPU, activations are not rounded to int8, since the product is bound by reading the weights.
Many rows of x at once (prefill) meet dequantized weights in the library's product.

Needs the package `triton` and a GPU that it supports, or its interpreter (environment variable TRITON_INTERPRET=1,
set before this module is imported), which runs the same kernels slowly on the CPU: so they are tested. `measure` times
them on a GPU where one is at hand.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lib.quantized.levels import stored as stored_zero
from lib.runtime.pack import PLAIN, TILE, UNIT, Packed, tile_bytes

MOST = 16  # rows of x for which the packed product is used; more are multiplied with dequantized weights
AT_ONCE = 32  # lines (of 64 bytes) that a program reads at once, a power of two


class Matrix(NamedTuple):
    """A packed matrix in a device's memory: uint8 `data` [size], else as in `pack.Packed`."""

    data: Tensor
    rows: int
    columns: int
    bits: int
    group_size: int
    symmetric: bool
    levels: str


def load(packed: Packed, device: str | torch.device = "cuda") -> Matrix:
    """Copy a packed matrix to `device`, byte by byte."""
    if packed.book is not None:
        raise ValueError(
            "pairs (levels='pairs') have kernels for CPUs; on a GPU run this model unpacked, or quantize it with "
            "levels='half'."
        )
    shape = packed.rows, packed.columns, packed.bits, packed.group_size, packed.symmetric, packed.levels
    return Matrix(torch.from_numpy(packed.data.copy()).to(device), *shape)


def product(matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias, [..., rows] in the type of x, for x [..., columns] on the device of the matrix.

    Raises ValueError for an x of another width or on another device.
    """
    if x.shape[-1] != matrix.columns or x.device != matrix.data.device:
        raise ValueError(
            f"x of shape {list(x.shape)} on {x.device} meets a matrix of {matrix.columns} columns on "
            f"{matrix.data.device}; its last dimension and its device must be the matrix's; reshape or move it."
        )
    given = x.reshape(-1, matrix.columns).contiguous()
    if matrix.bits == PLAIN or len(given) > MOST:
        found = torch.nn.functional.linear(given, dequantize(matrix, given.dtype))
    else:
        found = _packed_product(matrix, given)
    found = found if bias is None else found + bias.to(found.dtype)
    return found.reshape(*x.shape[:-1], matrix.rows)


def dequantize(matrix: Matrix, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The values [rows, columns] that the packed codes stand for, computed in float32 and rounded once to `dtype`."""
    if matrix.bits == PLAIN:
        tiles = matrix.data.view(torch.bfloat16).reshape(-1, matrix.columns, TILE)
        return tiles.transpose(1, 2).reshape(-1, matrix.columns)[: matrix.rows].to(dtype)
    out = torch.empty(matrix.rows, matrix.columns, dtype=dtype, device=matrix.data.device)
    sizes, flags = _layout(matrix)
    blocks = triton.cdiv(sizes[2] * flags["LINES"], AT_ONCE)
    _dequantize_kernel[(triton.cdiv(matrix.rows, TILE), blocks)](*_views(matrix), out, *sizes, **flags)
    return out


def _packed_product(matrix: Matrix, x: Tensor) -> Tensor:
    """x [n, columns] Wᵀ, n from 0 to `MOST`, in the type of x."""
    out = torch.empty(len(x), matrix.rows, dtype=x.dtype, device=x.device)
    if len(x):
        sizes, flags = _layout(matrix)
        batch = triton.next_power_of_2(len(x))
        _product_kernel[(triton.cdiv(matrix.rows, TILE),)](
            *_views(matrix), x, out, len(x), *sizes, BATCH=batch, **flags
        )
    return out


def _views(matrix: Matrix) -> tuple[Tensor, Tensor, Tensor]:
    """The same memory as 32-bit words (codes), as 16-bit halves (scales), and as bytes (zero points)."""
    return matrix.data.view(torch.int32), matrix.data.view(torch.int16), matrix.data


def _layout(matrix: Matrix) -> tuple[tuple[int, ...], dict]:
    """Arguments of both kernels: (rows, columns, units, header bytes, tile bytes, groups, group size), flags."""
    grid = matrix.bits, matrix.group_size, matrix.symmetric, matrix.levels
    header, body = tile_bytes(matrix.columns, *grid)
    stored = next(width for width in (2, 3, 4, 8) if width >= matrix.bits)
    units, groups = body // (64 * stored), -(-matrix.columns // matrix.group_size)
    sizes = (matrix.rows, matrix.columns, units, header, header + body, groups, matrix.group_size)
    # lines that hold codes; at 3 bits another one holds the third bits
    lines = {2: 2, 3: 2, 4: 4, 8: 8}[stored]
    # counted in halves, so that they are whole
    first, step = (int(2 * part) for part in stored_zero(matrix.bits, matrix.levels, matrix.symmetric))
    flags = {"FIRST": first, "STEP": step, "TILE": TILE, "UNIT": UNIT, "COUNT": AT_ONCE}
    return sizes, {"BITS": stored, "LINES": lines} | flags


@triton.jit
def _line(words, start, units, header, tile_size, BITS: tl.constexpr, LINES: tl.constexpr, COUNT: tl.constexpr,
          TILE: tl.constexpr):  # fmt: skip
    """`COUNT` lines of this program's tile from `start`: words, third bits [TILE, COUNT], units, places in them."""
    line = start + tl.arange(0, COUNT)
    unit, place = line // LINES, line % LINES
    known = (unit < units)[None, :]
    first = tl.program_id(0).to(tl.int64) * (tile_size // 4) + header // 4 + unit * (16 * BITS)
    rows = tl.arange(0, TILE)[:, None]
    word = tl.load(words + (first + place * 16)[None, :] + rows, mask=known, other=0)
    third = word
    if BITS == 3:
        third = tl.load(words + (first + 32)[None, :] + rows, mask=known, other=0)
    return word, third, unit, place


@triton.jit
def _code(word, third, place, step, byte, BITS: tl.constexpr, LINES: tl.constexpr):
    """Codes [TILE, COUNT] as float32: those of column `byte` of the line's step number `step`."""
    STEPS: tl.constexpr = 8 // LINES
    WIDTH: tl.constexpr = 8 // STEPS
    code = (word >> (8 * byte + WIDTH * step)) & ((1 << WIDTH) - 1)
    if BITS == 3:
        code = code | (((third >> (8 * byte + place * STEPS + step)[None, :]) & 1) << 2)
    return code.to(tl.float32)


@triton.jit
def _grid(halves, codes, unit, units, header, tile_size, groups, group_size, FIRST: tl.constexpr,
          STEP: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr):  # fmt: skip
    """Scales and zero points [TILE, COUNT] of these units, float32."""
    known, tile = (unit < units)[None, :], tl.program_id(0).to(tl.int64)
    # the group of a one-group row ends with its columns, before the padding
    group = tl.minimum(unit * UNIT // group_size, groups - 1)
    place = (group * TILE)[None, :] + tl.arange(0, TILE)[:, None]
    half = tl.load(halves + tile * (tile_size // 2) + place, mask=known, other=0)
    scale = (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)  # a bfloat16 is the upper half of a float32
    if STEP == 0:
        zero = tl.full(scale.shape, FIRST / 2, tl.float32)
    else:
        stored = tl.load(codes + tile * tile_size + groups * TILE * 2 + place, mask=known, other=0).to(tl.float32)
        zero = stored * (STEP / 2) + FIRST / 2
    return scale, zero


@triton.jit
def _product_kernel(words, halves, codes, x, out, batch, rows, columns, units, header, tile_size, groups, group_size,
                    BATCH: tl.constexpr, BITS: tl.constexpr, LINES: tl.constexpr, FIRST: tl.constexpr,
                    STEP: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    """out [batch, rows] = x [batch, columns] Wᵀ; one program a tile."""
    STEPS: tl.constexpr = 8 // LINES
    item = tl.arange(0, BATCH)
    found = tl.zeros([BATCH, TILE], tl.float32)
    for start in range(0, units * LINES, COUNT):
        word, third, unit, place = _line(words, start, units, header, tile_size, BITS, LINES, COUNT, TILE)
        scale, zero = _grid(halves, codes, unit, units, header, tile_size, groups, group_size, FIRST, STEP, TILE, UNIT)
        dot = tl.zeros([BATCH, TILE, COUNT], tl.float32)
        total = tl.zeros([BATCH, COUNT], tl.float32)
        for step in tl.static_range(STEPS):
            for byte in tl.static_range(4):
                column = unit * UNIT + 4 * (place * STEPS + step) + byte
                known = (item < batch)[:, None] & (column < columns)[None, :]
                value = tl.load(x + item[:, None] * columns + column[None, :], mask=known, other=0).to(tl.float32)
                code = _code(word, third, place, step, byte, BITS, LINES)
                dot += code[None, :, :] * value[:, None, :]
                total += value
        found += tl.sum(scale[None, :, :] * (dot - zero[None, :, :] * total[:, None, :]), 2)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = (item < batch)[:, None] & (row < rows)[None, :]
    tl.store(out + item[:, None] * rows + row[None, :], found.to(out.dtype.element_ty), mask=known)


@triton.jit
def _dequantize_kernel(words, halves, codes, out, rows, columns, units, header, tile_size, groups, group_size,
                       BITS: tl.constexpr, LINES: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr,
                       TILE: tl.constexpr, UNIT: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    """out [rows, columns] = scale · (code - zero point); a program a tile and `COUNT` lines."""
    STEPS: tl.constexpr = 8 // LINES
    start = tl.program_id(1) * COUNT
    word, third, unit, place = _line(words, start, units, header, tile_size, BITS, LINES, COUNT, TILE)
    scale, zero = _grid(halves, codes, unit, units, header, tile_size, groups, group_size, FIRST, STEP, TILE, UNIT)
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    for step in tl.static_range(STEPS):
        for byte in tl.static_range(4):
            column = unit * UNIT + 4 * (place * STEPS + step) + byte
            value = scale * (_code(word, third, place, step, byte, BITS, LINES) - zero)
            known = (row < rows)[:, None] & ((column < columns) & (unit < units))[None, :]
            tl.store(out + row[:, None] * columns + column[None, :], value.to(out.dtype.element_ty), mask=known)
