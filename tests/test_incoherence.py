"""Kurtosis, peak and the three factors against closed forms and a direct computation."""

import math

import pytest
import torch

from lib.analysis import incoherence
from lib.quantizers.hadamard import rotation
from lib.quantizers.rtn import rtn


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_known_distributions():
    assert incoherence.kurtosis(normal(200_000)) == pytest.approx(3, abs=0.1)
    assert incoherence.kurtosis(torch.linspace(-1, 1, 100_001)) == pytest.approx(9 / 5, rel=1e-3)
    assert incoherence.kurtosis(torch.tensor([-2.0, 2.0])) == pytest.approx(1)
    spike = torch.zeros(100)
    spike[3] = -7
    assert incoherence.peak(spike) == pytest.approx(10) and incoherence.peak(torch.ones(5)) == pytest.approx(1)


def test_units_do_not_matter():
    values = normal(1000)
    for scale in (1e-30, 1e30):
        assert incoherence.kurtosis(values.double() * scale) == pytest.approx(incoherence.kurtosis(values))
        assert incoherence.peak(values.double() * scale) == pytest.approx(incoherence.peak(values))


@pytest.mark.parametrize("values", [torch.zeros(4), torch.tensor([1.0, math.nan]), torch.empty(0)])
def test_values_that_say_nothing_are_refused(values):
    with pytest.raises(ValueError, match="finite ones"):
        incoherence.kurtosis(values)
    with pytest.raises(ValueError, match="finite ones"):
        incoherence.peak(values)


def layer():
    weight, inputs = normal(24, 64), normal(300, 64, seed=1) * torch.logspace(-1, 1, 64)
    return weight, inputs, 2 * inputs.T @ inputs / len(inputs)


def test_factors_multiply_to_the_error_of_the_outputs():
    weight, inputs, hessian = layer()
    other = rtn(weight, bits=3, group_size=32).dense()
    found = {name: score.value for name, score in incoherence.factors(weight, other, hessian).items()}
    direct = ((inputs @ (other - weight).T).square().sum() / (inputs @ weight.T).square().sum()).item()
    assert found["output_error"] == pytest.approx(direct, rel=1e-4)
    assert found["rounding"] * found["gain"] * found["exposure"] == pytest.approx(direct, rel=1e-4)


def test_a_rotation_leaves_the_gain_and_a_fold_does_not():
    weight, _, hessian = layer()
    turn = rotation(64, torch.Generator().manual_seed(0)).float()
    fold = torch.logspace(0, 1, 64)
    noise = 0.01 * normal(24, 64, seed=2)

    def gain(weight, hessian):
        return incoherence.factors(weight, weight + noise, hessian)["gain"].value

    assert gain(weight @ turn, turn.T @ hessian @ turn) == pytest.approx(gain(weight, hessian), rel=1e-4)
    assert gain(weight * fold, hessian / fold / fold[:, None]) != pytest.approx(gain(weight, hessian), rel=0.1)


def test_white_noise_is_fully_exposed():
    weight, _, hessian = layer()
    weight = weight.repeat(200, 1)
    found = incoherence.factors(weight, weight + 0.1 * normal(*weight.shape, seed=3), hessian)
    assert found["exposure"].value == pytest.approx(1, rel=0.05) and found["rounding"].value < 0.011


def test_layers_without_answer_or_error_are_refused():
    weight, _, hessian = layer()
    for pair in ((weight, weight), (torch.zeros_like(weight), weight)):
        with pytest.raises(ValueError, match="answers zero, or nothing was rounded"):
            incoherence.factors(*pair, hessian)
