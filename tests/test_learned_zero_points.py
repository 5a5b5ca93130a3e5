"""Training zero points: gradients against float64 autograd, wrong ones are found again, resuming, refusals."""

import copy

import pytest
import torch

from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, codebook, e2e_qp, learned_zero_points, rtn
from tests import test_e2e_qp
from tests.test_e2e_qp import interrupted, kl

GRID = {"bits": 3, "group_size": 16}


def pair(method=rtn, **grid):
    """That of the scales' tests, on this file's grid."""
    return test_e2e_qp.pair(method, **(GRID | grid))


def zeros(model):
    return {name: layer.zero_point.clone() for name, layer in calibrate.layers(model).items()}


@pytest.mark.parametrize("levels", ["integer", "half"])
def test_product_and_gradients_equal_those_of_the_formula_in_float64(levels):
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(12, 32, generator=generator), torch.randn(2, 5, 32, generator=generator)
    quantized = rtn.rtn(weight, bits=3, group_size=8, levels=levels)
    part = learned_zero_points.LearnableZeroPointLinear(
        QuantLinear(quantized, torch.randn(12, generator=generator)), torch.float32
    )
    with torch.no_grad():
        part.delta.normal_(0, 0.1, generator=generator)
        part.zeta.normal_(0, 0.5, generator=generator)
    given = inputs.clone().requires_grad_()
    pull = torch.randn(2, 5, 12, generator=generator)
    (part(given) * pull).sum().backward()

    moved = quantized.zero_point.double() + learned_zero_points.ZERO_POINT_RATE * part.zeta.detach().double()
    zero = moved.round().clamp(0, 7) if levels == "integer" else (2 * moved).round().clamp(4, 11) / 2
    zero.requires_grad_()
    assert (zero != quantized.zero_point).any()
    delta, x = part.delta.detach().double().requires_grad_(), inputs.double().requires_grad_()
    step = (quantized.scale.double() * (1 + delta))[..., None]
    dense = (step * (quantized.codes.double().view(12, 4, 8) - zero[..., None])).flatten(1)
    expected = x @ dense.T + part.layer.bias.detach().double()
    (expected * pull.double()).sum().backward()
    assert torch.allclose(part(inputs).double(), expected, atol=1e-5)
    assert torch.allclose(part.delta.grad.double(), delta.grad, atol=1e-4)
    assert torch.allclose(part.zeta.grad.double(), learned_zero_points.ZERO_POINT_RATE * zero.grad, atol=1e-3)
    assert torch.allclose(given.grad.double(), x.grad, atol=1e-5)


def test_zero_points_of_a_layer_that_are_off_by_one_are_found_again():
    generator = torch.Generator().manual_seed(0)
    right = rtn.rtn(torch.randn(12, 32, generator=generator), bits=3, group_size=8)
    inputs = torch.randn(256, 32, generator=generator)
    wanted = inputs @ right.dense().T
    wrong = right._replace(zero_point=torch.where(right.zero_point < 7, right.zero_point + 1, right.zero_point - 1))
    part = learned_zero_points.LearnableZeroPointLinear(QuantLinear(wrong), torch.float32)
    optimizer = torch.optim.Adam([part.zeta], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (part(inputs) - wanted).square().mean().backward()
        optimizer.step()
    part.settle_()
    assert (part.layer.zero_point == right.zero_point).float().mean() > 0.95


def test_tuning_brings_the_model_nearer_moves_zero_points_and_leaves_codes():
    original, model, tokens = pair()
    right, codes = zeros(model), {name: layer.codes.clone() for name, layer in calibrate.layers(model).items()}
    before = kl(model, original, tokens)
    tuned = learned_zero_points.tune_(model, tokens, original, steps=40, batch=3, learning_rate=0.02)
    assert kl(model, original, tokens) < 0.9 * before
    for name, layer in calibrate.layers(model).items():
        assert torch.equal(layer.codes, codes[name]) and torch.equal(tuned[name].zero_point, layer.zero_point)
        assert layer.zero_point.dtype == torch.uint8 and layer.zero_point.max() <= 7
        assert layer.scale.dtype == torch.bfloat16 and (layer.scale > 0).all()
    assert any((zero != right[name]).any() for name, zero in zeros(model).items())
    assert not any("forward" in block.__dict__ for block in model.model.layers)


def test_what_the_last_step_saw_is_what_is_stored():
    _, model, _ = pair()
    part = learned_zero_points.LearnableZeroPointLinear(
        calibrate.layers(model)["model.layers.0.mlp.up_proj"], torch.float32
    )
    with torch.no_grad():
        part.zeta.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    seen = part(inputs)
    part.settle_()
    assert torch.allclose(seen, part.layer(inputs), atol=1e-5)


def test_a_stopped_job_resumes_to_the_same_bytes_and_is_no_job_of_scales(tmp_path, monkeypatch):
    original, model, tokens = pair()
    again, options = copy.deepcopy(model), {"steps": 6, "batch": 2, "learning_rate": 0.2}
    expected = learned_zero_points.tune_(model, tokens, original, **options)
    start = zeros(again)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, 4)
        learned_zero_points.tune_(again, tokens, original, **options, state=tmp_path)
    assert all(torch.equal(zero, start[name]) for name, zero in zeros(again).items())
    with pytest.raises(ValueError, match="method=learned_zero_points there, e2e_qp here"):
        e2e_qp.tune_(again, tokens, original, **options, state=tmp_path)
    found = learned_zero_points.tune_(again, tokens, original, **options, state=tmp_path)
    for name, quantized in expected.items():
        assert torch.equal(found[name].scale, quantized.scale)
        assert torch.equal(found[name].zero_point, quantized.zero_point)
    assert any((quantized.zero_point != start[name]).any() for name, quantized in found.items())


@pytest.mark.parametrize("method, grid", [(rtn, {"symmetric": True}), (codebook, {})])
def test_models_without_zero_points_are_refused(method, grid):
    original, model, tokens = pair(method, **grid)
    with pytest.raises(ValueError, match="has zero points"):
        learned_zero_points.tune_(model, tokens, original, steps=1)
    with pytest.raises(ValueError, match="has no quantized layers"):
        learned_zero_points.tune_(original, tokens, original, steps=1)
