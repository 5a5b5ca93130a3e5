"""Parts of a packed matrix that hold several layers one below the other, such as the queries, keys and values of Phi-3.

A packed matrix consists of tiles of 16 rows, so a part that begins at a tile is itself a packed matrix in the same
memory.
"""

import numpy as np

from lib.runtime import pack
from lib.runtime.architecture import Architecture
from lib.runtime.pack import Packed


def rows(packed: Packed, first: int, count: int) -> Packed:
    """Rows `first` to `first` + `count` - 1 in the same memory; ValueError where they don't begin with a tile."""
    if first % pack.TILE or first + count > packed.rows:
        raise ValueError(
            f"rows {first} to {first + count - 1} of {packed.rows}; a part begins at a multiple of {pack.TILE}, and "
            "ends in the matrix; run this model with its own generate."
        )
    tile = sum(pack.tile_bytes(*packed.grid))
    data = packed.data[first // pack.TILE * tile : -(-(first + count) // pack.TILE) * tile]
    return packed._replace(data=data, rows=count)


def parts(architecture: Architecture, path: str, packed: Packed, bias: np.ndarray | None) -> dict[str, tuple]:
    """The linear layers in the module at `path` of a block, by the names of `LINEARS`: (packed matrix, bias)."""
    names, first, found = architecture.modules()[path], 0, {}
    wanted = sum(architecture.shape(name)[0] for name in names)
    if packed.rows != wanted:
        raise ValueError(
            f"{path} has {packed.rows} rows where the configuration asks for {wanted}; get an undamaged copy."
        )
    if len(names) == 1:
        return {names[0]: (packed, bias)}
    for name in names:
        count = architecture.shape(name)[0]
        own = None if bias is None else np.ascontiguousarray(bias[first : first + count])
        found[name] = rows(packed, first, count), own
        first += count
    return found
