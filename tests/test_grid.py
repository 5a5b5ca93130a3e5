"""Affine grids against a float64 formula, and properties that hold for every shape, bit width and group size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.quantized.grid import BITS, check, choose, dequantize, quantize
from lib.quantizers import codebook


def random(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def round_trip(weight, bits, group_size, **kwargs):
    scale, zero = choose(weight, bits=bits, group_size=group_size, **kwargs)
    codes = quantize(weight, scale, zero, bits=bits)
    return codes, scale, zero, dequantize(codes, scale, zero, bits=bits)


@pytest.mark.parametrize("bits", BITS)
def test_minimum_and_maximum_match_the_formula_in_float64(bits):
    weight = random(5, 24)
    _, scale, zero, _ = round_trip(weight, bits, 8)
    for row in range(5):
        for group in range(3):
            w = weight[row, group * 8 : group * 8 + 8].double()
            low, high = min(w.min().item(), 0), max(w.max().item(), 0)
            expected = (high - low) / (2**bits - 1)
            assert abs(scale[row, group].item() - expected) <= expected * 2**-8  # bfloat16 keeps eight bits
            assert zero[row, group].item() == round(-low / scale[row, group].item())


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(list(BITS)),
    groups=st.integers(1, 4),
    size=st.integers(1, 24),
    rows=st.integers(1, 5),
    symmetric=st.booleans(),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 10**6),
)
def test_error_is_at_most_a_step_and_rounding_again_changes_nothing(
    bits, groups, size, rows, symmetric, magnitude, seed
):
    weight = random(rows, groups * size, seed) * magnitude
    codes, scale, zero, values = round_trip(weight, bits, size, symmetric=symmetric)
    assert codes.dtype == torch.uint8 and codes.max().item() < 2**bits
    assert (zero is None) == symmetric and torch.isfinite(values).all()
    step = scale.float().repeat_interleave(size, 1)
    # half a step of rounding, half of the rounded zero point, and what the bfloat16 scale cuts off at the ends
    assert ((values - weight).abs() <= step * (1 + 2**bits * 2**-8)).all()
    assert torch.equal(quantize(values, scale, zero, bits=bits), codes)


@pytest.mark.parametrize("symmetric", [False, True])
def test_search_never_does_worse_than_minimum_and_maximum(symmetric):
    weight, importance = random(16, 64, 3) ** 3, random(1, 64, 4)[0].square()
    for bits in (2, 3, 4):
        plain = round_trip(weight, bits, 32, symmetric=symmetric)[3]
        found = round_trip(weight, bits, 32, symmetric=symmetric, importance=importance, candidates=30)[3]
        losses = [((w - weight).square() * importance).reshape(16, 2, 32).sum(-1) for w in (plain, found)]
        assert (losses[1] <= losses[0]).all() and losses[1].sum() < 0.95 * losses[0].sum()


def test_search_weighs_columns_by_importance():
    weight = torch.tensor([[0.3, 0.9, -0.9, 6.0]])
    small = torch.tensor([1.0, 1.0, 1.0, 0.0])
    values = round_trip(weight, 2, 4, importance=small, candidates=64)[3]
    everywhere = round_trip(weight, 2, 4)[3]
    assert (values - weight)[0, :3].square().sum() < (everywhere - weight)[0, :3].square().sum()


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-42, 3e38, -3e38])
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_groups_stay_finite(value, symmetric):
    weight = torch.full((2, 8), value)
    _, scale, _, values = round_trip(weight, 4, 4, symmetric=symmetric, candidates=8)
    assert torch.isfinite(values).all() and (scale > 0).all()
    assert (values - weight).abs().max() <= abs(value) * 0.08 + 1e-37


def test_a_range_that_overflows_float32_is_represented():
    weight = torch.tensor([[3e38, -3e38, 1e38, 0.0]])
    values = round_trip(weight, 8, 4)[3]
    assert torch.isfinite(values).all() and (values - weight).abs().max() < 3e36


def test_one_group_a_row():
    weight = random(3, 20)
    _, scale, zero, _ = round_trip(weight, 4, -1)
    assert scale.shape == zero.shape == (3, 1)
    assert torch.equal(scale, choose(weight, bits=4, group_size=20)[0])


def test_values_and_rows_do_not_depend_on_the_order_of_work():
    weight = random(700, 96)  # more rows than one step of the search takes
    whole = choose(weight, bits=3, group_size=32, candidates=8)
    half = choose(weight[300:], bits=3, group_size=32, candidates=8)
    assert torch.equal(whole[0][300:], half[0]) and torch.equal(whole[1][300:], half[1])


@pytest.mark.parametrize("bits", [1, 9, 0, 4.0, True, "4"])
def test_bits_outside_two_to_eight_are_refused(bits):
    with pytest.raises(ValueError, match=r"2 to 8 bits; choose one of 2, 3, 4"):
        check(64, bits=bits, group_size=32)


@pytest.mark.parametrize("candidates", [-1, 0, 2.0, True, "8", None])
def test_candidates_that_are_no_number_of_ranges_are_refused(candidates):
    for choose_ in (choose, codebook.choose):
        with pytest.raises(ValueError, match=rf"candidates={candidates!r} ranges .* from 1 .* are allowed; 8 find"):
            choose_(random(2, 8), bits=4, group_size=4, candidates=candidates)


@pytest.mark.parametrize("group_size", [128, 0, -2, 5, 64.0])
def test_group_size_that_does_not_divide_names_what_does(group_size):
    with pytest.raises(ValueError, match=r"does not divide 576 columns of q_proj; choose one of .*32, .*64"):
        check(576, bits=4, group_size=group_size, name="q_proj")


def test_not_finite_weights_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        choose(torch.tensor([[1.0, float("nan")]]), bits=4, group_size=2)


def test_scale_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"does not fit a matrix of shape \(4, 6\); .*; pass the scale that `choose`"):
        dequantize(torch.zeros(4, 6, dtype=torch.uint8), torch.ones(3, 2), None, bits=4)
