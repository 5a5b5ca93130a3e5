"""Inputs of packed products that are not laid out or shaped as a batch of rows: computed all the same, or refused."""

import numpy as np
import pytest
import torch

from lib.runtime import cpu, modules, pack, torch_kernels
from tests.test_cpu_kernels import needs_compiler
from tests.test_pack import random

WAYS = [pytest.param("compiled", marks=needs_compiler), "plain torch", "dequantized"]
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(params=WAYS)
def layer(request, monkeypatch):
    """A packed layer of 64 inputs and 40 outputs, and how many rows its way of computing takes."""
    if request.param == "plain torch":
        monkeypatch.setattr(cpu, "library", lambda path=None: None)
    if request.param == "dequantized":
        monkeypatch.setattr(cpu, "instruction_set", lambda: "portable")
        monkeypatch.setattr(modules, "MANY", 1)
    return modules.PackedLinear(pack.pack(random(40, 64, 4, 32)), torch.randn(40, generator=GENERATOR))


def test_inputs_that_are_not_contiguous_give_what_their_copies_give(layer):
    wide = torch.randn(6, 5, 128, generator=GENERATOR)
    for x in (wide[..., ::2], wide[:, 0, 32:96], wide[..., :64].transpose(0, 1), wide[0, 0, :1].expand(3, 64)):
        assert not x.is_contiguous()
        found = layer(x)
        assert found.shape == (*x.shape[:-1], 40) and torch.equal(found, layer(x.clone().contiguous()))
        dense = torch_kernels.rows(layer.packed, 0, 40)
        wanted = x.double() @ dense.double().T + layer.bias.double()
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_one_row_no_rows_and_other_types_of_numbers(layer):
    x = torch.randn(64, generator=GENERATOR)
    assert layer(x).shape == (40,) and torch.equal(layer(x), layer(x[None])[0])
    assert layer(x[None][:0]).shape == (0, 40) and layer(torch.empty(2, 0, 64)).shape == (2, 0, 40)
    half = layer(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and torch.equal(half, layer(x.to(torch.bfloat16).float()).to(torch.bfloat16))


@pytest.mark.parametrize("shape", [(2, 63), (2, 65), (4, 32), (1, 128), (2, 2, 32), (63,)])
def test_inputs_of_another_width_are_refused(layer, shape):
    with pytest.raises(ValueError, match=rf"{shape[-1]}\] meet 64 columns; \[n, 64\] is allowed; reshape"):
        layer(torch.zeros(shape))


@needs_compiler
def test_the_compiled_product_refuses_what_it_would_read_past():
    packed, x = pack.pack(random(40, 64, 4, 32)), np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    for given in (x, x[:, :63], x[0, :64], x[None, :, :64]):
        with pytest.raises(ValueError, match=r"meet 64 columns; \[n, 64\] is allowed"):
            cpu.product(packed, given)
    whole = np.ascontiguousarray(x[:, ::2])
    for same in (x[:, ::2], np.asfortranarray(whole), whole.astype(np.float64)):
        assert np.array_equal(cpu.product(packed, same), cpu.product(packed, whole))
    bias = np.arange(80.0)
    assert np.array_equal(
        cpu.product(packed, whole, bias[::2]), cpu.product(packed, whole) + bias[::2].astype(np.float32)
    )
    with pytest.raises(ValueError, match=r"bias of shape \[39\].*40 rows"):
        cpu.product(packed, whole, bias[:39])


@needs_compiler
def test_rows_outside_the_matrix_are_refused():
    packed = pack.pack(random(40, 64, 4, 32))
    assert cpu.rows(packed, 39, 40).shape == (1, 64) and cpu.rows(packed, 40, 40).shape == (0, 64)
    for first, last in (-1, 3), (39, 41), (3, 2):
        with pytest.raises(ValueError, match=rf"rows {first} to {last - 1}.*has 0 to 39"):
            cpu.rows(packed, first, last)
