"""The one packed layout for codes of 2, 3, 4 and 8 bits, as kernels on the CPU and on a GPU read it.

A matrix [rows, columns] is cut into tiles of 16 rows, which lie one after the other. A tile begins with its grid:

    scales        bfloat16 [groups][16]       the 16 rows' scales of the first group, of the second, ...
    zero points   uint8    [groups][16]       as `quantized.levels` stores them, of pairs the numbers of books;
                                              absent where a grid has none
    padding       up to a multiple of 64 bytes

and goes on with units of 32 columns, 64 · bits bytes each. A *step* is four columns: a line of 64 bytes whose byte
4 r + c belongs to row r and column c, so that one 32-bit lane holds what one row multiplies with four activations.

    step 0                                 step 1                step 7
    row 0       row 1            row 15
    c0 c1 c2 c3 c0 c1 c2 c3 ...  c0 … c3 | c4 … c7 ...  ... |    c28 … c31 of every row

A unit has eight steps, and its lines hold

    8 bits   line s        step s                                                          8 lines
    4 bits   line i        step 2i in the low nibble, step 2i+1 in the high one            4 lines
    2 bits   line i        steps 4i, 4i+1, 4i+2, 4i+3 from the low bits up                 2 lines
    3 bits   lines 0, 1    the low two bits, as at 2 bits
             line 2        the third bit of step s as bit s                                3 lines

Codes of 5, 6 and 7 bits are stored as 8. 16 stands for bfloat16 weights, [columns][16] a tile, without a grid. Blocks
are what activations share a scale over: 64 columns, or 32 where a group is no multiple of 64. A row is padded with zero
codes to whole blocks and a matrix to whole tiles; what is padded meets activations of zero, or is never read.
"""

from typing import NamedTuple

import numpy as np

from lib.quantized import pairs
from lib.quantized.levels import Zero
from lib.quantized.levels import stored as stored_zero
from lib.runtime import lines, narrow
from lib.runtime.aligned import zeros
from lib.runtime.lines import TILE

UNIT, PLAIN = 32, 16
AT_ONCE = 64  # tiles packed or unpacked at once, with a few bytes per code


class Packed(NamedTuple):
    """A packed matrix: uint8 `data` [size] with its shape and grid; `bits` 16 is bfloat16 without a grid.

    book: of pairs, uint8 [2, 64]: 128 + the first numbers of the entries of all books, and of the second ones.
    """

    data: np.ndarray
    rows: int
    columns: int
    bits: int
    group_size: int
    symmetric: bool = True
    levels: str = "integer"
    book: np.ndarray | None = None

    @property
    def grid(self) -> tuple:
        """Columns, bits, group size, symmetry and levels, as `tile_bytes` takes them."""
        return self.columns, self.bits, self.group_size, self.symmetric, self.levels

    @property
    def zero(self) -> Zero:
        """How the zero points are stored; pairs have the middle of their numbers, and books for zero points."""
        return Zero(128, 0) if self.book is not None else stored_zero(self.bits, self.levels, self.symmetric)

    @property
    def stored(self) -> int:
        """Bits that a code takes here."""
        return stored_bits(self.bits)

    @property
    def block(self) -> int:
        """Columns whose activations share a scale."""
        return block_of(self.columns, self.group_size)


def check(columns: int, group_size: int, name: str = "the matrix") -> None:
    """Raise ValueError for groups that the kernels can't read: several in a row, and no multiple of 32."""
    if group_size < columns and group_size % UNIT:
        allowed = [size for size in range(UNIT, columns + 1, UNIT) if columns % size == 0]
        raise ValueError(
            f"group_size={group_size} in {name} with {columns} columns; the packed layout has groups of a multiple of "
            f"{UNIT} columns, or one group a row; quantize with {', '.join(map(str, allowed[:6])) or '-1'}"
            f"{' or -1' if allowed else ''}, or run this model unpacked."
        )


def stored_bits(bits: int) -> int:
    """Stored bits of a code of `bits`: the next of 2, 3, 4 and 8; 16 stays."""
    return next(width for width in (2, 3, 4, 8, 16) if width >= bits)


def block_of(columns: int, group_size: int) -> int:
    """Columns whose activations share a scale: a divisor of the group, or any where a row is one group."""
    return 64 if group_size >= columns or group_size % 64 == 0 else 32


def check_inputs(packed: Packed, shape) -> None:
    """Raise ValueError for inputs of a `shape` other than [n, columns]: kernels would read past them."""
    if len(shape) != 2 or shape[1] != packed.columns:
        allowed = f"[n, {packed.columns}] is allowed"
        raise ValueError(f"inputs of shape {list(shape)} meet {packed.columns} columns; {allowed}; reshape them.")


def tile_bytes(columns: int, bits: int, group_size: int, symmetric: bool, levels: str = "integer") -> tuple[int, int]:
    """(bytes of a tile's scales and zero points, bytes of its codes)."""
    if bits == PLAIN:
        return 0, columns * TILE * 2
    groups, block = -(-columns // group_size), block_of(columns, group_size)
    header = -(-groups * TILE * (3 if stored_zero(bits, levels, symmetric).step else 2) // 64) * 64
    return header, -(-columns // block) * block * TILE * stored_bits(bits) // 8


def size(rows: int, columns: int, *, bits: int, group_size: int = 0, symmetric=True, levels: str = "integer") -> int:
    """Bytes that a packed matrix takes."""
    return -(-rows // TILE) * sum(tile_bytes(columns, bits, group_size, symmetric, levels))


def pack(quantized, out: np.ndarray | None = None, name: str = "the matrix") -> Packed:
    """Pack a `Quantized`; `out` (uint8 [size], else new memory) gets the bytes.

    Raises ValueError for codebooks, for groups that `check` refuses, and for scales that 16 bits don't hold.
    """
    import torch  # saved models run without torch

    from lib.quantized import zero_points  # needs torch

    if quantized.codebook is not None and quantized.levels != pairs.LEVELS:
        raise ValueError(
            f"{name} is on a grid with a codebook; the packed layout holds evenly spaced grids; quantize with another "
            "method (rtn, gptq), or run this model unpacked."
        )
    scale = quantized.scale.detach().cpu()
    short = scale.to(torch.bfloat16)
    if not torch.equal(short.to(scale.dtype), scale):
        raise ValueError(
            f"scales of {name} are {scale.dtype} numbers that bfloat16 does not hold; the packed layout has 16-bit "
            "scales; quantize again, which rounds to scales of bfloat16, or run this model unpacked."
        )
    codes, grid = quantized.codes.detach().cpu().numpy(), {"bits": quantized.bits, "levels": quantized.levels}
    zero = zero_points.stored(quantized.zero_point, **grid)
    zero = None if zero is None else zero.cpu().numpy()
    scale = short.contiguous().view(torch.int16).numpy().view(np.uint16)
    packed = pack_arrays(codes, scale, zero, **grid, group_size=quantized.group_size, out=out, name=name)
    return packed if quantized.codebook is None else packed._replace(book=book(quantized.codebook.cpu().numpy()))


def book(codebook: np.ndarray) -> np.ndarray:
    """The entries of pairs, int8 `pairs.SHAPE`, as kernels read them: see `Packed`."""
    return np.ascontiguousarray(codebook.astype(np.int16).reshape(-1, 2).T + 128).astype(np.uint8)


def pack_arrays(
    codes, scale, zero, *, bits: int, group_size: int, levels="integer", out=None, name: str = "the matrix"
) -> Packed:
    """Pack uint8 codes [rows, columns], scales (the bits of bfloat16 as uint16) and zero points [rows, groups].

    zero: as `quantized.levels` stores them for these `levels`, None where it stores none.
    """
    (rows, columns), symmetric = codes.shape, zero is None and levels == "integer"
    check(columns, group_size, name)
    header, body = tile_bytes(columns, bits, group_size, symmetric, levels)
    out = zeros(-(-rows // TILE) * (header + body)) if out is None else out
    tiles = out.reshape(-1, header + body)
    for start in range(0, len(tiles), AT_ONCE):
        part, some = tiles[start : start + AT_ONCE], slice(start * TILE, (start + AT_ONCE) * TILE)
        part[:, :header] = _grid(scale[some], None if zero is None else zero[some], header)
        part[:, header:] = lines.packed(
            lines.steps(codes[some], body * 8 // TILE // stored_bits(bits)), stored_bits(bits)
        )
    return Packed(out, rows, columns, bits, group_size, symmetric, levels)


def pack_plain(weight, name: str = "the matrix") -> Packed:
    """Pack a weight matrix (a torch tensor [rows, columns]) as bfloat16; ValueError where that makes infinity of it."""
    import torch  # saved models run without torch

    bits = weight.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
    narrow.check(bits, name)
    rows, columns = weight.shape
    return Packed(pack_bits(bits, zeros(size(rows, columns, bits=PLAIN))), rows, columns, PLAIN, columns)


def pack_bits(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Put bfloat16 numbers (their bits, uint16 [rows, columns]) into `out`, which is returned."""
    columns = values.shape[1]
    filled = lines.filled(values, TILE).reshape(-1, TILE, columns)
    out.view(np.uint16).reshape(-1, columns, TILE)[:] = filled.transpose(0, 2, 1)
    return out


def unpack(packed: Packed):
    """The `Quantized` that was packed, equal in every code, scale and zero point."""
    import torch  # saved models run without torch

    from lib.quantized import zero_points  # needs torch
    from lib.quantized.grid import Quantized  # needs torch

    codes, scale, zero = unpack_arrays(packed)
    scale = torch.from_numpy(scale.view(np.int16)).view(torch.bfloat16)
    zero = None if zero is None else torch.from_numpy(zero)
    zero = zero_points.restored(zero, scale, bits=packed.bits, levels=packed.levels)
    codebook = None
    if packed.book is not None:
        codebook = torch.from_numpy(packed.book.astype(np.int16).T - 128).to(torch.int8).view(pairs.SHAPE)
    codes = torch.from_numpy(codes)
    return Quantized(codes, scale, zero, packed.bits, packed.group_size, codebook, packed.levels)


def unpack_arrays(packed: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes, scales (bits of bfloat16) and zero points (as stored, None where none are) of a packed matrix."""
    header, body = tile_bytes(*packed.grid)
    groups, rows = -(-packed.columns // packed.group_size), packed.rows
    tiles = packed.data.reshape(-1, header + body)
    codes = np.empty((len(tiles) * TILE, packed.columns), np.uint8)
    for start in range(0, len(tiles), AT_ONCE):
        steps = lines.unpacked(tiles[start : start + AT_ONCE, header:], packed.stored)
        found = steps.transpose(0, 2, 1, 3).reshape(len(steps) * TILE, -1)
        codes[start * TILE : start * TILE + len(found)] = found[:, : packed.columns]
    scale = np.ascontiguousarray(tiles[:, : groups * TILE * 2]).view(np.uint16)
    scale, zero = _ungrid(scale, groups)[:rows], None
    if packed.zero.step or packed.book is not None:
        zero = _ungrid(np.ascontiguousarray(tiles[:, groups * TILE * 2 : groups * TILE * 3]), groups)[:rows]
    return codes[:rows], scale, zero


def unpack_plain(packed: Packed):
    """The bfloat16 matrix that was packed, a torch tensor [rows, columns]."""
    import torch  # saved models run without torch

    values = packed.data.view(np.uint16).reshape(-1, packed.columns, TILE).transpose(0, 2, 1)
    values = np.ascontiguousarray(values).reshape(-1, packed.columns)[: packed.rows]
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)


def _grid(scale: np.ndarray, zero: np.ndarray | None, header: int) -> np.ndarray:
    """Bytes [tiles, header] of scales and zero points [rows, groups]."""
    parts = [part for part in (scale, zero) if part is not None]
    tiled = [lines.filled(part, TILE).reshape(-1, TILE, part.shape[1]).transpose(0, 2, 1) for part in parts]
    found = [np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in tiled]
    return lines.filled(np.concatenate(found, 1), 1, header)


def _ungrid(found: np.ndarray, groups: int) -> np.ndarray:
    """[rows, groups] of [tiles, groups · 16]."""
    return np.ascontiguousarray(found.reshape(len(found), groups, TILE).transpose(0, 2, 1)).reshape(-1, groups)
