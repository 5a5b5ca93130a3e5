"""GPTQ against a plain float64 implementation, the closed-form optimum, and its failures."""

import pytest
import torch

from lib.models.capture import second_moment
from lib.quantized.grid import dequantize
from lib.quantizers import gptq as module
from lib.quantizers.gptq import gptq, inverse_factor, revived
from lib.quantizers.rtn import rtn


def problem(rows=6, columns=32, samples=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(samples, columns, generator=generator) @ (mix + 0.5 * torch.eye(columns))
    weight = torch.randn(rows, columns, generator=generator)
    return weight, 2 * inputs.T @ inputs / samples, inputs


def values(quantized):
    return dequantize(quantized.codes, quantized.scale, quantized.zero_point, bits=quantized.bits).double()


def reference(weight, hessian, quantized, order, damp=0.01):
    """Optimal brain quantization in a fixed order, by the inverse Hessian itself (no Cholesky, no blocks), float64."""
    weight, hessian = weight.double().clone(), hessian.double()
    inverse = torch.linalg.inv(hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.double))
    codes = torch.zeros_like(quantized.codes)
    top, size = 2**quantized.bits - 1, quantized.group_size
    for j in order.tolist():
        scale = quantized.scale[:, j // size].double()
        zero = (
            quantized.zero_point[:, j // size].double() if quantized.zero_point is not None else 2**quantized.bits / 2
        )
        code = torch.round(weight[:, j] / scale + zero).clamp(0, top)
        codes[:, j] = code.to(torch.uint8)
        error = (weight[:, j] - scale * (code - zero)) / inverse[j, j]
        weight -= error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1  # column j is done: only its own (never read again) entry must not be zero
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("kind", [{}, {"symmetric": True}, {"levels": "half"}, {"levels": "balanced"}])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_equal_a_float64_reference(bits, kind, act_order):
    weight, hessian, _ = problem(columns=192)  # two blocks of lazily applied updates, the second one half full
    found = gptq(weight, hessian, bits=bits, group_size=32, **kind, act_order=act_order)
    assert found.levels == kind.get("levels", "integer")
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(192)
    expected = reference(weight, hessian, found, order)
    assert (expected != found.codes).float().mean() < 0.005  # a float32 sum may fall on the other side of a tie
    assert (expected.int() - found.codes.int()).abs().max() <= 1


def test_independent_inputs_make_rounding_optimal():
    weight, _, _ = problem()
    hessian = torch.diag(torch.rand(32) + 0.1)
    found = gptq(weight, hessian, bits=3, group_size=16, candidates=1)
    assert torch.equal(found.codes, rtn(weight, bits=3, group_size=16).codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_change_less_than_by_rounding(bits):
    weight, hessian, inputs = problem(rows=32, columns=64, samples=500)
    plain = rtn(weight, bits=bits, group_size=32)
    loss = {name: ((weight - values(q)) @ inputs.double().T).square().mean() for name, q in
            {"rtn": plain, "gptq": gptq(weight, hessian, bits=bits, group_size=32)}.items()}  # fmt: skip
    assert loss["gptq"] < 0.8 * loss["rtn"]


def test_dead_columns_become_exactly_zero():
    weight, hessian, _ = problem()
    hessian[:, 5] = hessian[5] = 0
    found = values(gptq(weight, hessian, bits=4, group_size=16))
    assert (found[:, 5] == 0).all() and torch.isfinite(found).all()


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_with_dead_columns_too_the_codes_do_not_depend_on_the_scale_of_the_inputs(scale):
    weight, _, inputs = problem(columns=64, samples=400)
    inputs[:, ::11] = 0
    grid = {"bits": 3, "group_size": 32}
    first, second = (gptq(weight, second_moment(inputs * factor), **grid) for factor in (1, scale))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3]))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_dead_columns_do_not_switch_the_compensation_off(scale):
    weight, _, inputs = problem(rows=32, columns=64, samples=500)
    inputs *= scale
    inputs[:, ::11] = 0
    hessian, grid = second_moment(inputs), {"bits": 3, "group_size": 32}
    loss = {name: ((weight - values(q)) @ inputs.double().T).square().mean() for name, q in
            {"rtn": rtn(weight, **grid), "gptq": gptq(weight, hessian, **grid)}.items()}  # fmt: skip
    assert loss["gptq"] < 0.6 * loss["rtn"]


def test_a_hessian_without_dead_columns_stays_as_it_is():
    _, hessian, _ = problem()
    found, dead = revived(hessian)
    assert torch.equal(found, hessian) and not dead.any() and found is not hessian
    found, dead = revived(torch.zeros(4, 4))
    assert torch.equal(found, torch.eye(4)) and dead.all()


@pytest.mark.parametrize("hessian", [torch.zeros(32, 32), torch.ones(32, 32), torch.eye(32) * 1e-30])
def test_singular_hessians_are_damped(hessian):
    weight, _, _ = problem()
    assert torch.isfinite(values(gptq(weight, hessian, bits=3, group_size=16))).all()


def test_the_ladder_climbs_until_the_factor_exists(monkeypatch):
    indefinite = torch.tensor([[1.0, 1.2], [1.2, 1.0]])  # its lower eigenvalue is -0.2: 0.3 of the mean lifts it
    upper = inverse_factor(indefinite)
    assert torch.allclose((upper.T @ upper).inverse(), indefinite + 0.3 * torch.eye(2), atol=1e-4)


def test_a_hessian_without_factor_is_an_error():
    with pytest.raises(ValueError, match="no Cholesky factor even when damped by 1 "):
        inverse_factor(torch.tensor([[1.0, 5.0], [5.0, 1.0]]))
    with pytest.raises(ValueError, match="check the calibration text and the model for NaN"):
        inverse_factor(torch.full((2, 2), float("nan")))


def test_two_runs_give_the_same_bytes():
    weight, hessian, _ = problem()
    first, second = (gptq(weight, hessian, bits=3, group_size=16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3]))


def test_ladder_is_ascending():
    assert list(module.DAMP) == sorted(module.DAMP)
