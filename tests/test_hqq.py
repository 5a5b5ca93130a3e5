"""Half-quadratic zero points against float64 brute force; what rounding them does; failures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, hqq
from lib.quantizers.rtn import rtn
from tests import tiny


def random(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def phi(groups, scale, zero, bits, norm=hqq.NORM):
    """Σ |e|^p in steps, float64, written out."""
    ratio = groups.double() / scale.double()[..., None]
    code = torch.round(ratio + zero.double()[..., None]).clamp(0, 2**bits - 1)
    return (ratio - (code - zero.double()[..., None])).abs().pow(norm).sum(-1)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_objective_never_rises_with_more_steps(bits):
    groups, before = random(40, 64).reshape(20, 2, 64), None
    for steps in (1, 2, 5, 20):
        scale, zero = hqq.optimize(groups, bits=bits, steps=steps)
        now = phi(groups, scale, zero, bits)
        assert before is None or (now <= before + 1e-3).all()
        before = now if before is None else torch.minimum(before, now)
    first = phi(groups, *hqq.optimize(groups, bits=bits, steps=1), bits)
    assert before.sum() < 0.99 * first.sum()


def test_shrinking_follows_the_formula_and_keeps_small_errors_at_zero():
    error = torch.linspace(-2, 2, 401)
    exact = error.double()
    size = exact.abs().clamp(min=hqq.LEAST)
    expected = exact.sign() * (size - size ** (0.7 - 1) / 10).clamp(min=0)
    assert torch.allclose(hqq.shrink(error, 10.0, 0.7).double(), expected, atol=1e-6)
    assert (hqq.shrink(torch.linspace(-0.15, 0.15, 50), 10.0, 0.7) == 0).all()


def test_the_zero_point_is_the_minimum_that_a_float64_scan_finds():
    ratio, zero = random(6, 16).mul(3), torch.full((6,), 4.0)
    outliers = hqq.shrink(ratio - (hqq.codes(ratio, zero, 7) - zero[:, None]), 10.0, 0.7)
    found = hqq.next_zero(ratio, zero, outliers, 7)
    code, scan = hqq.codes(ratio, zero, 7).double(), torch.linspace(-8, 16, 24001, dtype=torch.float64)
    for row in range(6):
        target = (ratio[row] - outliers[row]).double()
        loss = (target - (code[row] - scan[:, None])).square().sum(1)
        assert abs(scan[loss.argmin()].item() - found[row].item()) < 1e-3


def test_the_refit_scale_is_the_minimum_that_a_float64_scan_finds():
    groups, scale, zero = random(5, 32)[:, None], torch.full((5, 1), 0.6), torch.full((5, 1), 3.0)
    found = hqq.refit(groups, scale, zero, bits=3)
    centred = (torch.round(groups.double() / 0.6 + 3).clamp(0, 7) - 3)[:, 0]
    scan = torch.linspace(0.3, 1.2, 9001, dtype=torch.float64)
    for row in range(5):
        loss = (groups[row].double() - scan[:, None] * centred[row]).square().sum(1)
        best = scan[loss.argmin()].item()
        assert abs(found[row, 0].item() - best) <= best * 2**-8 + 1e-4


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    groups=st.integers(1, 3),
    size=st.integers(1, 20),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    norm=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_any_matrix_gives_a_valid_grid(bits, groups, size, magnitude, norm, seed):
    weight = random(3, groups * size, seed) * magnitude
    found = hqq.hqq(weight, bits=bits, group_size=size, norm=norm)
    assert found.codes.dtype == found.zero_point.dtype == torch.uint8 and found.scale.dtype == torch.bfloat16
    assert max(found.codes.max().item(), found.zero_point.max().item()) < 2**bits and (found.scale > 0).all()
    # rounding the zero point and clipping cost at most about a step of the range each
    span = (weight.amax() - weight.amin()).clamp(min=weight.abs().amax())
    assert torch.isfinite(found.dense()).all() and (found.dense() - weight).abs().max() <= 1.5 * span


def test_powers_of_two_scale_the_grid_and_leave_the_codes():
    weight = random(4, 64)
    one, other = (hqq.hqq(weight * factor, bits=3, group_size=32) for factor in (1, 2.0**-12))
    assert torch.equal(one.codes, other.codes) and torch.equal(one.zero_point, other.zero_point)
    assert torch.equal(one.scale.float() * 2.0**-12, other.scale.float())


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-42, 3e38, -3e38])
def test_constant_groups_stay_finite(value):
    found = hqq.hqq(torch.full((2, 8), value), bits=4, group_size=4)
    assert torch.isfinite(found.dense()).all() and (found.dense() - value).abs().max() <= abs(value) * 0.08 + 1e-37


def test_refit_rounded_grids_err_less_than_minimum_and_maximum():
    weight = random(64, 128)
    for bits in (2, 3, 4):
        error = {
            name: (method(weight, bits=bits, group_size=64).dense() - weight).square().sum()
            for name, method in {"rtn": rtn, "hqq": hqq.hqq}.items()
        }
        assert error["hqq"] < error["rtn"]


def test_a_model_is_quantized_in_place_and_twice_alike():
    first, second = (hqq.quantize_(tiny.llama(), None, bits=3, group_size=32) for _ in range(2))
    assert all(torch.equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3]))
    model = tiny.qwen2()
    done = hqq.quantize_(model, bits=4, group_size=16)
    assert list(done) == list(calibrate.layers(model))
    assert all(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=tiny.tokens()).logits).all()


def test_what_is_not_possible_is_refused_before_the_work():
    with pytest.raises(ValueError, match="does not divide"):
        hqq.quantize_(tiny.llama(), bits=4, group_size=48)
    with pytest.raises(ValueError, match="NaN or infinite"):
        hqq.hqq(torch.tensor([[1.0, float("nan")]]), bits=4, group_size=2)
    with pytest.raises(ValueError, match="a norm above 0 and 1 step or more"):
        hqq.hqq(random(2, 4), bits=4, group_size=4, norm=0.0)
    with pytest.raises(ValueError, match="steps=0"):
        hqq.hqq(random(2, 4), bits=4, group_size=4, steps=0)
