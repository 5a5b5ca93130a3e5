"""What the compiled kernels are given: the structures of their sources, field by field."""

import ctypes

import numpy as np

from lib.runtime.families import LINEARS, NORMS
from lib.runtime.pack import Packed


class Matrix(ctypes.Structure):
    """`Matrix` of products.h; `keep` keeps the memory of its pointers alive."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("data", "bias", "book")] + [
        (name, ctypes.c_int32) for name in ("rows", "columns", "bits", "group_size", "block")
    ] + [("first", ctypes.c_float), ("step", ctypes.c_float)]  # fmt: skip

    @classmethod
    def of(cls, packed: Packed, bias: np.ndarray | None = None) -> "Matrix":
        """The structure for a packed matrix and its bias (float32 [rows])."""
        address = None if bias is None else bias.ctypes.data
        made = cls(
            packed.data.ctypes.data, address, None if packed.book is None else packed.book.ctypes.data,
            packed.rows, packed.columns, packed.stored, packed.group_size, packed.block, *packed.zero,
        )  # fmt: skip
        made.keep = packed.data, bias, packed.book
        return made


class Layer(ctypes.Structure):
    """`Layer` of cpu.cpp."""

    _fields_ = (
        [(name, Matrix) for name in LINEARS]
        + [(name, ctypes.c_void_p) for name in NORMS]
        + [("window", ctypes.c_int32), ("rotation", ctypes.c_int32), ("head_gate", Matrix)]
        + [("head_layers", ctypes.c_void_p)]
    )


class Settings(ctypes.Structure):
    """`Settings` of cpu.cpp."""

    _fields_ = [(name, ctypes.c_int32) for name in (
        "hidden", "heads", "key_heads", "size", "intermediate", "layers", "vocabulary", "threads",
        "rotated", "gelu", "head_bend", "head_residual",
    )] + [(name, ctypes.c_float) for name in ("eps", "query_scale", "embedding_scale", "unused")]  # fmt: skip


class Cache(ctypes.Structure):
    """`Cache` of cache.h."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("keys", "values", "key_grids", "value_grids", "cosine", "sine")
    ] + [("capacity", ctypes.c_int64), ("slots", ctypes.c_int32), ("bits", ctypes.c_int32)]
