"""Hadamard matrices against their definitions, and random rotations: orthogonal, even, seeded."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.quantizers.hadamard import hadamard, rotation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def is_orthogonal(matrix):
    return torch.allclose(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64), atol=1e-12)


@given(size=st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_every_size_is_orthogonal_and_even(size):
    matrix, power = hadamard(size), size & -size
    assert matrix.shape == (size, size) and matrix.dtype == torch.float64 and is_orthogonal(matrix)
    entries = matrix.abs().double()
    assert torch.allclose(entries[entries > 0], torch.tensor(1 / math.sqrt(power), dtype=torch.float64))
    assert ((entries > 0).sum(0) == power).all() and ((entries > 0).sum(1) == power).all()


@pytest.mark.parametrize("size", [1, 2, 16, 64, 256])
def test_powers_of_two_equal_the_parity_of_common_bits(size):
    signs = [[1.0 - 2 * ((i & j).bit_count() % 2) for j in range(size)] for i in range(size)]
    assert torch.allclose(hadamard(size), torch.tensor(signs, dtype=torch.float64) / math.sqrt(size), atol=1e-14)


@pytest.mark.parametrize(("size", "power"), [(6, 2), (9, 1), (12, 4), (576, 64)])
def test_other_sizes_are_blocks_of_the_largest_power_of_two(size, power):
    assert torch.equal(hadamard(size), torch.kron(torch.eye(size // power, dtype=torch.float64), hadamard(power)))


def test_a_single_large_entry_becomes_equal_ones():
    spike = torch.zeros(64, dtype=torch.float64)
    spike[17] = 8.0
    turned = spike @ rotation(64, generator())
    assert torch.allclose(turned.abs(), torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 48, 64, 576])
def test_rotations_are_orthogonal_and_depend_on_the_seed_alone(size, keep_mean):
    first, again = (rotation(size, generator(3), keep_mean=keep_mean) for _ in range(2))
    assert torch.equal(first, again) and is_orthogonal(first)
    if size >= 48:
        assert not torch.allclose(first, rotation(size, generator(4), keep_mean=keep_mean))
    ones = torch.ones(size, dtype=torch.float64)
    assert torch.allclose(ones @ first, ones, atol=1e-9) == keep_mean or size == 1


def test_rotating_and_subtracting_the_mean_commute_when_the_mean_is_kept():
    rows = torch.randn(5, 48, generator=generator(1), dtype=torch.float64) + 3
    turn = rotation(48, generator(), keep_mean=True)
    expected = (rows - rows.mean(1, keepdim=True)) @ turn
    assert torch.allclose(rows @ turn - (rows @ turn).mean(1, keepdim=True), expected, atol=1e-12)


@pytest.mark.parametrize("size", [0, -4, 2.0, True, "64", None])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=r"of a rotation; whole numbers from 1 on are allowed"):
        hadamard(size)
