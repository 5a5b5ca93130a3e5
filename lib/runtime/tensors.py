"""Tensors of safetensors files for the packed engine, read some rows at a time: no dequantized copy, no torch.

Every tensor is checked: it must have the expected shape, type and number of bytes, and finite numbers.
"""

from pathlib import Path

import numpy as np

from lib.checkpoints import stored
from lib.export import schemes
from lib.quantized import pairs
from lib.quantized.levels import stored as stored_zero
from lib.runtime import narrow, pack
from lib.runtime.aligned import zeros
from lib.runtime.narrow import bfloat16
from lib.runtime.pack import Packed

ROWS = 4096  # rows of a matrix that are read at once
FLOATS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
TYPES = FLOATS | {"I32": np.uint32, "I64": np.int64}
IGNORED = ".rotary_emb.inv_freq"  # computed anew, in transformers too


class Tensors:
    """The tensors of the files `paths`. quantization: the quantization_config of the checkpoint, if it has one."""

    def __init__(self, paths: list[Path], quantization: dict | None = None):
        self.entries, self.quantization, self.used = {}, quantization or {}, set()
        for path in paths:
            start, found = stored.opened(path)
            self.entries |= {key: (path, start, entry) for key, entry in found.items()}

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def has_matrix(self, name: str) -> bool:
        """Whether there is a weight of the module `name`, plain or packed."""
        return f"{name}.weight" in self or f"{name}.weight_packed" in self

    def left(self) -> list[str]:
        """Names of unused tensors, except those that transformers ignores as well."""
        return sorted(key for key in self.entries.keys() - self.used if not key.endswith(IGNORED))

    def read(self, key: str, shape: list[int], kinds=TYPES, first: int = 0, last: int | None = None) -> np.ndarray:
        """Rows `first` to `last` - 1 of a tensor of this shape (bfloat16 as uint16 of the same bits).

        Raises ValueError for one that is missing, of another shape, or of another type than `kinds`.
        """
        if key not in self.entries:
            raise ValueError(f"the checkpoint has no {key}; all weights must be there; export it again.")
        self.used.add(key)
        path, start, entry = self.entries[key]
        if entry["shape"] != [*shape]:
            raise ValueError(
                f"{key} is {entry['shape']} where config.json asks for {[*shape]}; get an undamaged copy of both."
            )
        if entry["dtype"] not in kinds:
            raise ValueError(
                f"{key} is stored as {entry['dtype']}; the packed engine reads {', '.join(kinds)} there; "
                "save the model in bfloat16, or run it with its own generate."
            )
        kind, (begin, end) = np.dtype(kinds[entry["dtype"]]), entry["data_offsets"]
        if end - begin != int(np.prod(shape)) * kind.itemsize:
            raise ValueError(f"{key} has {end - begin} bytes for {shape} of {entry['dtype']}; get an undamaged copy.")
        last = shape[0] if last is None else min(last, shape[0])
        width = int(np.prod(shape[1:])) * kind.itemsize
        with open(path, "rb") as file:
            file.seek(start + begin + first * width)
            content = file.read((last - first) * width)
        return np.frombuffer(content, kind).reshape(last - first, *shape[1:])

    def floats(self, key: str, shape: list[int], first: int = 0, last: int | None = None) -> np.ndarray:
        """As `read`, for a tensor of numbers, as finite float32."""
        found = self.read(key, shape, FLOATS, first, last)
        if found.dtype == np.uint16:
            found = (found.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError(f"{key} holds NaN or infinite values; all weights must be finite; get an undamaged copy.")
        return found

    def equal(self, first: str, second: str, shape: tuple[int, int]) -> bool:
        """Whether two plain matrices hold the same numbers."""
        starts = range(0, shape[0], ROWS)
        parts = ([self.floats(key, shape, row, row + ROWS) for key in (first, second)] for row in starts)
        return all(np.array_equal(*pair) for pair in parts)

    def matrix(self, name: str, shape: tuple[int, int], bits: int | None = None, kind: str = "Linear") -> Packed:
        """The packed matrix of a module: its codes, or its plain weights rounded to `bits` (None: bfloat16)."""
        if f"{name}.weight_packed" in self:
            return self._codes(name, shape, kind)
        (rows, columns), key = shape, f"{name}.weight"
        if bits is None:
            group, bits = columns, pack.PLAIN
        else:
            group = next((size for size in (64, 32) if columns % size == 0), columns)
        self.read(key, shape, FLOATS, 0, 0)  # checked before memory is allocated
        data, step = _room(rows, columns, bits, group, True)
        for first in range(0, rows, ROWS):
            part, out = self.floats(key, shape, first, first + ROWS), data[step(first) : step(first + ROWS)]
            if bits == pack.PLAIN:
                short = bfloat16(part)
                narrow.check(short, key)
                pack.pack_bits(short, out)
            else:
                codes, scale = nearest(part, bits, group)
                pack.pack_arrays(codes, scale, None, bits=bits, group_size=group, out=out, name=name)
        return Packed(data, rows, columns, bits, group)

    def _grid(self, name: str, columns: int, kind: str) -> tuple[int, int, bool, str]:
        """Bits, group size, symmetry and levels of a stored matrix, as config.json says."""
        found = schemes.find(self.quantization, name, kind)
        if found is None:
            raise ValueError(f"{name} is packed, but it is no target in config.json; export it again.")
        bits, size, symmetric, codebook, levels = found
        if levels != pairs.LEVELS and (codebook is not None or f"{name}.{schemes.OWN}" in self):
            raise ValueError(f"{name} is on a grid with a codebook; evenly spaced grids are packed; load it unpacked.")
        size = columns if size == -1 else size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or columns % size:
            raise ValueError(f"{name} has groups of {size!r} in rows of {columns}; a divisor is allowed; export again.")
        if levels == pairs.LEVELS:
            pairs.check(bits, size, columns, name)
        return bits, size, symmetric, levels

    def _codes(self, name: str, shape: tuple[int, int], kind: str) -> Packed:
        """A matrix in the convention of `export.packing`, from its words to the packed layout."""
        rows, columns = shape
        bits, size, symmetric, levels = self._grid(name, columns, kind)
        groups, zero, book = columns // size, None, None
        if levels == pairs.LEVELS:
            book = pack.book(self.read(f"{name}.{schemes.OWN}", [*pairs.SHAPE], {"I8": np.int8}))
        said = self.read(f"{name}.weight_shape", [2], {"I64": np.int64}).tolist()
        if said != [rows, columns]:
            raise ValueError(f"{name} is {said} where config.json asks for {[rows, columns]}; copy the folder again.")
        words = {"I32": np.uint32}
        if stored_zero(bits, levels, symmetric).step:
            found = self.read(f"{name}.weight_zero_point", [-(-rows * bits // 32), groups], words)
            zero = np.ascontiguousarray(spread(np.ascontiguousarray(found.T), bits, rows).T)
        scale = self.floats(f"{name}.weight_scale", [rows, groups])
        if not np.array_equal((bfloat16(scale).astype(np.uint32) << 16).view(np.float32), scale):
            raise ValueError(f"scales of {name} need more than 16 bits; quantize again, or load it unpacked.")
        key, wide = f"{name}.weight_packed", [rows, -(-columns * bits // 32)]
        pack.check(columns, size, name)
        self.read(key, wide, words, 0, 0)
        data, step = _room(rows, columns, bits, size, symmetric, levels)
        for first in range(0, rows, ROWS):
            some = slice(first, first + ROWS)
            codes = spread(self.read(key, wide, words, first, first + ROWS), bits, columns)
            grid = {"bits": bits, "group_size": size, "levels": levels, "name": name}
            out = data[step(first) : step(first + ROWS)]
            pack.pack_arrays(codes, bfloat16(scale[some]), None if zero is None else zero[some], **grid, out=out)
        return Packed(data, rows, columns, bits, size, symmetric, levels, book)


def _room(rows: int, columns: int, bits: int, group: int, symmetric: bool, levels: str = "integer"):
    """Memory for a packed matrix, and a function from a row (a multiple of 16) to its tile's memory."""
    tile = sum(pack.tile_bytes(columns, bits, group, symmetric, levels))
    return zeros(-(-rows // pack.TILE) * tile), lambda row: row // pack.TILE * tile


def spread(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """uint8 codes [n, count] of uint32 words [n, any]: code i of a row lies at its bits i · bits and on."""
    n, period = len(words), -(-words.shape[1] // bits)  # 32 codes fill `bits` words
    words = np.pad(words, ((0, 0), (0, period * bits - words.shape[1]))).reshape(n, period, bits)
    codes = np.empty((n, period, 32), np.uint8)
    for j in range(32):
        word, shift = divmod(j * bits, 32)
        value = words[:, :, word] >> np.uint32(shift)
        if shift + bits > 32:
            value = value | words[:, :, word + 1] << np.uint32(32 - shift)
        codes[:, :, j] = value & np.uint32(2**bits - 1)
    return codes.reshape(n, -1)[:, :count]


def nearest(weight: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales (bits of bfloat16) of float32 rows on the symmetric grid of `quantized.grid`."""
    groups, middle = weight.reshape(len(weight), -1, group), 2 ** (bits - 1)
    high, low = np.maximum(groups.max(-1), 0), np.minimum(groups.min(-1), 0)
    stored = bfloat16(np.maximum(high / np.float32(middle - 1), (0 - low) / np.float32(middle)))
    stored = np.where(stored < 0x80, np.uint16(0x3F80), stored)  # below the least normal number: a group of zeros
    scale = (stored.astype(np.uint32) << 16).view(np.float32)[..., None]
    codes = np.rint(groups / scale) + np.float32(middle)
    return codes.clip(0, 2**bits - 1).astype(np.uint8).reshape(weight.shape), stored
