"""Keys and values of a model's sequences; the layout is drawn in cache.h, and what a number costs in cache_codes.py."""

import numpy as np

from lib.runtime import structures
from lib.runtime.cache_codes import GROUP, check_bits, codes, floats, folded, turned, unfolded, widths
from lib.runtime.released import by_small_pages, release
from lib.runtime.weights import Weights

_LINE = 64  # bytes that a processor reads at once


class Cache:
    """Keys and values for `slots` sequences of up to `capacity` positions, and the tables of the rotations.

    bits: of a number, 16, 8 or 4. Memory is taken from the system as positions are filled.
    """

    def __init__(self, weights: Weights, slots: int, capacity: int, bits: int = 16):
        check_bits(bits)
        self.weights, self.slots, self.bits = weights, slots, bits
        self.capacity = -(-capacity // GROUP) * GROUP
        heads, (key, value, grid) = (len(weights.layers), slots, weights.key_heads), widths(weights.size, bits)
        self.keys, self.values = (_zeros((*heads, self.capacity * width), np.uint8) for width in (key, value))
        self.key_grids, self.value_grids = (_zeros((*heads, self.capacity * grid // 2), np.uint16) for _ in range(2))
        for part in self.parts if slots > 1 else ():  # slots lie far apart, and most positions stay empty
            by_small_pages(part)
        positions = np.arange(self.capacity, dtype=np.float32)[:, None]
        angles = [(positions * each.frequencies, np.float32(each.scale)) for each in weights.rotations]
        self.cosine, self.sine = (np.stack([of(each) * scale for each, scale in angles]) for of in (np.cos, np.sin))
        addresses = [part.ctypes.data for part in (*self.parts, self.cosine, self.sine)]
        self.native = structures.Cache(*addresses, self.capacity, slots, bits)

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        """What grows with positions: keys, values and their grids, each [layers, slots, key heads, ...]."""
        return self.keys, self.values, self.key_grids, self.value_grids

    @property
    def nbytes(self) -> int:
        """Bytes of all slots at their full capacity."""
        return sum(part.nbytes for part in self.parts)

    def grown(self, capacity: int) -> "Cache":
        """A larger cache with the same content."""
        made = Cache(self.weights, self.slots, capacity, self.bits)
        for to, part in zip(made.parts, self.parts):
            to[..., : part.shape[-1]] = part
        return made

    def forget(self, slot: int) -> None:
        """Give the memory of a slot's positions back to the system."""
        for part in self.parts:
            for layer in part[:, slot]:
                release(layer)

    def copy(self, source: int, to: int, count: int) -> None:
        """Give slot `to` the first `count` positions of slot `source`."""
        whole = -(-count // GROUP) * GROUP
        for part in self.parts:
            some = part.shape[-1] // self.capacity * whole
            part[:, to, :, :some] = part[:, source, :, :some]

    def put(self, layer: int, slots, positions, keys, values) -> None:
        """Store torch tensors [rows, key heads, size] at these slots and positions."""
        heads, bits = self.weights.key_heads, self.bits
        keys, values = (part.detach().float().numpy() for part in (keys, values))
        given = (codes(turned(keys) if bits == 4 else keys, bits), codes(values, bits))
        keys, values = (folded(part[0], bits, half) for part, half in zip(given, (4, 16)))
        unit = 1 if bits == 16 else 4  # numbers, or bytes, of a position that lie together
        for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist())):
            group, lane = divmod(position, GROUP)
            to = self.keys[layer, slot].view(keys.dtype).reshape(heads, -1, keys.shape[-1] // unit, GROUP, unit)
            to[:, group, :, lane] = keys[row].reshape(heads, -1, unit)
            self.values[layer, slot].view(keys.dtype).reshape(heads, self.capacity, -1)[:, position] = values[row]
            for grids, (_, *grid) in zip((self.key_grids, self.value_grids), given):
                for place, part in enumerate(grid):
                    grids[layer, slot].reshape(heads, -1, 2, GROUP)[:, group, place, lane] = part[row]

    def get(self, layer: int, slot: int, count: int):
        """The first `count` keys (turned, with 4 bits) and values of a slot, torch float32 [key heads, count, size]."""
        import torch  # saved models run without torch

        size, heads, kind = self.weights.size, self.weights.key_heads, np.uint16 if self.bits == 16 else np.uint8
        keys, values = (part[layer, slot].view(kind).reshape(heads, -1) for part in (self.keys, self.values))
        width, unit = keys.shape[-1] // self.capacity, 1 if self.bits == 16 else 4
        keys = keys.reshape(heads, -1, width // unit, GROUP, unit).transpose(0, 1, 3, 2, 4)
        found = []
        for stored, grids, half in ((keys, self.key_grids, 4), (values, self.value_grids, 16)):
            stored = stored.reshape(heads, self.capacity, -1)[:, :count]
            if self.bits == 16:
                found.append(floats(stored))
                continue
            grid = floats(grids[layer, slot].reshape(heads, -1, 2, GROUP))
            scale, least = (grid[:, :, each].reshape(heads, -1, 1)[:, :count] for each in (0, 1))
            found.append(unfolded(stored, self.bits, half)[..., :size].astype(np.float32) * scale + least)
        return tuple(torch.from_numpy(part) for part in found)


def _zeros(shape: tuple[int, ...], kind) -> np.ndarray:
    """Zeros that begin where a line of memory does, without which every wide read would touch two."""
    count = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = np.zeros(count + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + count].view(kind).reshape(shape)
