"""The packed layout: what goes in comes out, and every code lies where the docstring draws it."""

import errno
import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.quantized import zero_points
from lib.quantized.grid import Quantized
from lib.runtime import aligned, pack


def random(rows, columns, bits, group_size, symmetric=False, seed=0, levels="integer"):
    """A matrix of random codes on random grids."""
    generator = torch.Generator().manual_seed(seed)
    groups = columns // group_size
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    scale = (torch.rand(rows, groups, generator=generator) + 0.1).to(torch.bfloat16)
    zero = torch.randint(2**bits, (rows, groups), dtype=torch.uint8, generator=generator)
    zero = zero_points.restored(zero, scale, bits=bits, levels=levels)
    return Quantized(codes, scale, None if symmetric else zero, bits, group_size, levels=levels)


KINDS = [(False, "integer"), (True, "integer"), (False, "half"), (False, "balanced")]  # symmetric, levels


shapes = st.one_of(
    st.tuples(st.integers(1, 6), st.sampled_from([32, 64, 96, 128])).map(lambda s: (s[0] * s[1], s[1])),
    st.integers(1, 200).map(lambda columns: (columns, columns)),  # a row is one group
)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), shapes, st.integers(2, 8), st.sampled_from(KINDS), st.integers(0, 99))
def test_what_is_packed_comes_back_to_the_bit(rows, shape, bits, kind, seed):
    symmetric, levels = kind
    given = random(rows, shape[0], bits, shape[1], symmetric, seed, levels)
    packed = pack.pack(given)
    found = pack.unpack(packed)
    assert torch.equal(found.codes, given.codes) and torch.equal(found.scale, given.scale)
    assert (found.zero_point is None) if symmetric else torch.equal(found.zero_point, given.zero_point)
    assert (found.bits, found.group_size, found.levels) == (bits, shape[1], levels)
    grid = {"bits": bits, "group_size": shape[1], "symmetric": symmetric}
    assert packed.data.nbytes == pack.size(rows, shape[0], **grid, levels=levels)
    # halves take the bytes of integers, and balanced levels those of symmetric grids
    grid["symmetric"] = symmetric or levels == "balanced"
    assert packed.data.nbytes == pack.size(rows, shape[0], **grid)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric, levels", KINDS)
def test_codes_lie_where_the_drawing_says(bits, symmetric, levels):
    matrix = random(37, 192, bits, 64, symmetric, levels=levels)
    packed = pack.pack(matrix)
    header, body = pack.tile_bytes(192, bits, 64, symmetric, levels)
    assert header % 64 == 0 and len(packed.data) == 3 * (header + body)
    for row, column in [(0, 0), (3, 5), (15, 31), (16, 32), (36, 191), (20, 100)]:
        tile = packed.data[row // 16 * (header + body) :]
        unit = tile[header + column // 32 * 64 * bits :]
        step, byte = column % 32 // 4, 4 * (row % 16) + column % 4
        if bits == 8:
            code = unit[64 * step + byte]
        elif bits == 4:
            code = unit[64 * (step // 2) + byte] >> 4 * (step % 2) & 15
        else:
            code = unit[64 * (step // 4) + byte] >> 2 * (step % 4) & 3
        if bits == 3:
            code |= (unit[128 + byte] >> step & 1) << 2
        assert code == matrix.codes[row, column]
        group = column // 64
        scale = tile[: 3 * 32].view(np.uint16)[group * 16 + row % 16]
        assert scale == matrix.scale.view(torch.int16)[row, group].item() & 0xFFFF
        if not symmetric and levels != "balanced":
            zero = matrix.zero_point[row, group].item()
            stored = zero if levels == "integer" else 2 * zero - 2 ** (bits - 1)
            assert tile[3 * 32 + group * 16 + row % 16] == stored


def test_bytes_are_what_the_bits_promise():
    for bits in (2, 3, 4, 8):
        assert pack.size(1536, 576, bits=bits, group_size=64, symmetric=True) <= 1536 * 576 * (bits + 0.26 + 0.03) / 8
    assert pack.stored_bits(5) == 8 and pack.stored_bits(16) == 16


def test_plain_weights_come_back_in_bfloat16():
    weight = torch.randn(37, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack.unpack_plain(pack.pack_plain(weight)), weight.to(torch.bfloat16))
    noncontiguous = weight.T
    assert torch.equal(pack.unpack_plain(pack.pack_plain(noncontiguous)), noncontiguous.to(torch.bfloat16))


def test_noncontiguous_codes_are_packed_alike():
    matrix = random(20, 64, 4, 32)
    turned = matrix._replace(codes=matrix.codes.T.contiguous().T, scale=matrix.scale.T.contiguous().T)
    assert np.array_equal(pack.pack(matrix).data, pack.pack(turned).data)


def test_what_the_layout_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"group_size=48 in it with 96 columns; .* quantize with 32, 96 or -1"):
        pack.pack(random(4, 96, 4, 48), name="it")
    with pytest.raises(ValueError, match="codebook"):
        pack.pack(random(4, 64, 4, 64)._replace(codebook=torch.zeros(16)), name="it")
    with pytest.raises(ValueError, match="16-bit scales"):
        pack.pack(random(4, 64, 4, 64)._replace(scale=torch.full((4, 1), 1.001)), name="it")


def test_memory_is_zero_aligned_and_side_by_side():
    parts = [aligned.zeros(count) for count in (100, 64, 1, 5000)]
    addresses = [part.ctypes.data for part in parts]
    assert all(address % 64 == 0 for address in addresses) and not any(part.any() for part in parts)
    parts[0][:] = 255
    assert not any(part.any() for part in parts[1:])
    gaps = [after - before - len(part) for before, after, part in zip(addresses, addresses[1:], parts)]
    assert sum(0 <= gap < 64 for gap in gaps) >= 2  # but where a new chunk begins
    assert len(aligned.zeros(aligned.CHUNK + 5)) == aligned.CHUNK + 5


def test_a_kernel_without_huge_pages_gives_memory_too(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *arguments):
            asked.append(arguments)
            raise OSError(errno.EINVAL, "Invalid argument")

    asked = []
    monkeypatch.setattr(aligned, "_chunk", {"bytes": np.empty(0, np.uint8), "used": 0})
    monkeypatch.setattr(aligned.mmap, "mmap", Refusing)
    found = aligned.zeros(1000)
    assert len(found) == 1000 and not found.any() and len(asked) == hasattr(mmap, "MADV_HUGEPAGE")


def test_memory_lives_as_long_as_what_lies_in_it():
    kept = aligned.zeros(1000)
    kept[:] = 7
    for _ in range(3):
        aligned.zeros(aligned.CHUNK)[:] = 1  # new chunks; the old one is in use
    assert (kept == 7).all()
