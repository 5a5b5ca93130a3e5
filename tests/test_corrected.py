"""Corrected targets against float64 least squares, the share of them against tokens that nothing was fitted to."""

import pytest
import torch

from lib.models import capture
from lib.quantizers import calibrate, corrected, gptaq, gptq
from tests import tiny

GRID = {"bits": 3, "group_size": 32}


def problem(tokens, columns=64, rows=16, drift=0.3, noise=0.15, seed=0):
    """weight, inputs X and original inputs X̃ [tokens, columns]; a part of the drift follows from X, a part is noise."""
    fixed, drawn = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=fixed) / columns**0.5 + 0.5 * torch.eye(columns)
    turn = torch.eye(columns) + drift * torch.randn(columns, columns, generator=fixed) / columns**0.5
    weight = torch.randn(rows, columns, generator=fixed)
    given = torch.randn(tokens, columns, generator=drawn) @ mix
    return weight, given, given @ turn + noise * torch.randn(tokens, columns, generator=drawn)


def moments(given, clean):
    return capture.second_moment(given), capture.cross_moment(clean, given)


def loss(weight, other, given, clean):
    return (clean @ weight.T - given @ other.T).double().square().sum()


def test_the_whole_correction_solves_the_damped_least_squares():
    weight, given, clean = problem(400)
    hessian, cross = moments(given, clean)
    found = weight + corrected.correction(weight, hessian, cross)
    # W' that answers W X̃ on X; the damping pulls it to W: columns √λ W, asked for with inputs √λ I
    ridge = (0.01 * hessian.diagonal().mean() * len(given) / 2).sqrt() * torch.eye(64)
    stacked, wanted = torch.cat([given, ridge]).double(), torch.cat([clean @ weight.T, ridge @ weight.T]).double()
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_objective_is_the_distance_to_the_target_up_to_a_constant():
    weight, given, clean = problem(300)
    hessian, cross = moments(given, clean)
    target = weight.double() + weight.double() @ cross.double() @ torch.linalg.inv(hessian.double())
    differences = []
    for seed in range(3):
        other = weight + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        distance = ((target - other.double()) @ given.double().T).square().sum()
        differences.append((loss(weight, other, given, clean) - distance).item())
    assert max(differences) - min(differences) < 1e-4 * abs(differences[0])


def test_the_share_is_the_best_one_on_the_other_half():
    weight, given, clean = problem(300)
    halves = [moments(x, y) for x, y in zip(given.chunk(2), clean.chunk(2))]
    found = corrected.held_out_share(weight, halves)
    tried = torch.linspace(0, 1, 2001)
    losses = torch.zeros(2001, dtype=torch.double)
    for fit, test in ((0, 1), (1, 0)):
        step = corrected.correction(weight, *halves[fit])
        x, y = given.chunk(2)[test], clean.chunk(2)[test]
        losses += torch.stack([loss(weight, weight + share * step, x, y) for share in tried])
    half = tried[losses.argmin()].item()
    assert 0.1 < half < 0.95 and found == pytest.approx(2 * half / (1 + half), abs=2e-3)


def test_the_share_grows_with_the_tokens_and_comes_near_the_best_on_fresh_ones():
    weight, fresh, wanted = problem(20_000, noise=0.4, seed=99)
    shares = []
    for tokens in (100, 200, 400, 4000):
        _, given, clean = problem(tokens, noise=0.4, seed=tokens)
        halves = [moments(x, y) for x, y in zip(given.chunk(2), clean.chunk(2))]
        shares.append(corrected.held_out_share(weight, halves))
        hessian, cross = moments(given, clean)
        step = corrected.correction(weight, hessian, cross)
        test, outer = moments(fresh, wanted)
        best = torch.sum(weight @ outer * step) / torch.sum(step @ test * step)
        assert shares[-1] == pytest.approx(best.item(), abs=0.2)
    assert shares == sorted(shares) and shares[0] < 0.6 and shares[-1] > 0.9


def test_noise_is_not_corrected_nor_is_nothing():
    weight, given, _ = problem(200)
    noisy = given + 0.3 * torch.randn(given.shape, generator=torch.Generator().manual_seed(3))
    target, _ = corrected.aim(weight, given, noisy)
    assert (target - weight).abs().max() < 0.05 * weight.abs().max()
    for few in (given, given[:1]):
        target, hessian = corrected.aim(weight, few, few)
        assert torch.equal(target, weight) and torch.allclose(hessian, capture.second_moment(few), rtol=1e-4, atol=1e-4)
    assert torch.equal(corrected.aim(weight, given[:1], noisy[:1])[0], weight)  # one token can't be held out


def test_fresh_outputs_come_closer_than_by_gptq_also_where_gptaq_overfits():
    weight, given, clean = problem(160)
    _, fresh, wanted = problem(5000, seed=5)
    hessian, cross = moments(given, clean)
    done = {
        "gptq": gptq.gptq(weight, hessian, **GRID), "gptaq": gptaq.gptaq(weight, hessian, cross, **GRID, alpha=1.0),
        "corrected": gptq.gptq(*corrected.aim(weight, given, clean), **GRID),
    }  # fmt: skip
    losses = {name: loss(weight, quantized.dense(), fresh, wanted) for name, quantized in done.items()}
    assert losses["corrected"] < losses["gptq"] and losses["corrected"] < losses["gptaq"]


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e30])
def test_weights_of_any_size_keep_the_share(scale):
    weight, given, clean = problem(200)
    halves = [moments(x, y) for x, y in zip(given.chunk(2), clean.chunk(2))]
    if scale > 1e-38:  # below, products underflow
        assert corrected.held_out_share(weight * scale, halves) == pytest.approx(
            corrected.held_out_share(weight, halves), rel=1e-3
        )
    assert torch.isfinite(corrected.aim(weight * scale, given, clean)[0]).all()


def test_dead_columns_and_singular_hessians_stay_finite():
    weight, given, clean = problem(20)  # fewer tokens than columns
    given, clean = given.clone(), clean.clone()
    given[:, ::5] = 0
    target, hessian = corrected.aim(weight, given, clean)
    assert torch.isfinite(target).all() and torch.equal(target[:, ::5], weight[:, ::5])
    assert torch.isfinite(gptq.gptq(target, hessian, **GRID).dense()).all()


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_with_dead_columns_too_the_target_does_not_depend_on_the_scale_of_the_inputs(scale):
    weight, given, clean = problem(300)
    given[:, ::11] = clean[:, ::11] = 0
    found, expected = (corrected.aim(weight, factor * given, factor * clean)[0] for factor in (scale, 1))
    assert torch.equal(found, expected) and (expected - weight).abs().max() > 0.1 * weight.abs().max()


def test_the_model_drifts_less_than_by_gptq_on_fresh_tokens():
    ids, fresh, losses = tiny.tokens(32, 64), tiny.tokens(8, 64, seed=1), {}
    for name, method in (("gptq", gptq), ("corrected", corrected)):
        model = tiny.llama()
        with torch.no_grad():
            expected = model(input_ids=fresh).logits
            method.quantize_(model, ids, **GRID)
            losses[name] = (model(input_ids=fresh).logits - expected).square().mean()
    assert losses["corrected"] < losses["gptq"]


def test_a_killed_walk_resumes_and_another_job_is_refused(tmp_path):
    whole = corrected.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
    for left in (0, 2):
        for file in sorted(tmp_path.glob("block-*"))[left:]:
            file.unlink()
        again = corrected.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
        assert all(torch.equal(a, b) for name in whole for a, b in zip(whole[name][:3], again[name][:3]))
    with pytest.raises(ValueError, match="method=corrected there, gptq here"):
        gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
    with pytest.raises(ValueError, match="is a QuantLinear already"):
        model = tiny.llama()
        corrected.quantize_(model, tiny.tokens(), **GRID)
        corrected.quantize_(model, tiny.tokens(), **GRID)
    assert list(whole) == list(calibrate.layers(tiny.llama()))
