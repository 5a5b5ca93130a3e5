"""Lines of 64 bytes, which hold the codes of a tile of 16 rows; `pack` draws them."""

import numpy as np

TILE = 16
LINES = {2: 2, 3: 3, 4: 4, 8: 8}  # of 64 bytes a unit


def filled(values: np.ndarray, rows: int, columns: int | None = None) -> np.ndarray:
    """`values` with zeros up to a multiple of `rows`, and to `columns`."""
    missing = -len(values) % rows, 0 if columns is None else columns - values.shape[1]
    return np.pad(values, ((0, missing[0]), (0, missing[1]))) if any(missing) else values


def steps(codes: np.ndarray, columns: int) -> np.ndarray:
    """Codes as [tiles, steps, 16 rows, 4 columns]."""
    codes = filled(codes, TILE, columns)
    return codes.reshape(-1, TILE, columns // 4, 4).transpose(0, 2, 1, 3)


def packed(steps: np.ndarray, bits: int) -> np.ndarray:
    """Bytes [tiles, size] of steps [tiles, steps, 16, 4]."""
    s = np.ascontiguousarray(steps).reshape(len(steps), -1, 8, 64)  # tiles, units, steps, bytes
    if bits == 4:
        s = s[:, :, 0::2] | s[:, :, 1::2] << 4
    elif bits in (2, 3):
        low = s & 3
        lines = low[:, :, 0::4] | low[:, :, 1::4] << 2 | low[:, :, 2::4] << 4 | low[:, :, 3::4] << 6
        third = np.bitwise_or.reduce((s >> 2 & 1) << np.arange(8, dtype=np.uint8)[:, None], 2, keepdims=True)
        s = np.concatenate([lines, third], 2) if bits == 3 else lines
    return s.reshape(len(steps), -1)


def unpacked(found: np.ndarray, bits: int) -> np.ndarray:
    """Steps [tiles, steps, 16, 4] of the bytes of tiles."""
    lines = np.ascontiguousarray(found).reshape(len(found), -1, LINES[bits], 64)
    shape = (len(found), lines.shape[1], 8, 64)
    if bits == 4:
        s = np.stack([lines & 15, lines >> 4], 3).reshape(shape)
    elif bits in (2, 3):
        s = np.stack([lines[:, :, :2] >> shift & 3 for shift in (0, 2, 4, 6)], 3).reshape(shape)
        if bits == 3:
            s |= (lines[:, :, 2:] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 2
    else:
        s = lines
    return s.reshape(len(found), -1, TILE, 4)
