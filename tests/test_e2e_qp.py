"""Training scales: gradients against float64 autograd, the loss falls, the model stays one, killed jobs resume."""

import copy
import types

import pytest
import torch

from lib.metrics import divergence
from lib.quantized.grid import HUGE, TINY
from lib.quantized.linear import QuantLinear
from lib.quantizers import activations, calibrate, codebook, e2e_qp, gptq, rtn
from lib.trainers import schedule, trainer
from tests import tiny

GRID = {"bits": 2, "group_size": 16}


def pair(method=rtn, **grid):
    """A tiny model, its quantized copy, and windows of tokens."""
    original, tokens = tiny.llama(), tiny.tokens(6, 24)
    model = copy.deepcopy(original)
    method.quantize_(model, tokens, **(GRID | grid))
    return original, model, tokens


def kl(model, original, tokens):
    return divergence.measure(model, original, tokens)["kl_divergence"].value


@pytest.mark.parametrize("kind", [{}, {"symmetric": True}, {"levels": "half"}])
def test_product_and_gradients_equal_those_of_the_formula_in_float64(kind):
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(12, 32, generator=generator), torch.randn(2, 5, 32, generator=generator)
    quantized = rtn.rtn(weight, bits=3, group_size=8, **kind)
    part = e2e_qp.LearnableScaleLinear(QuantLinear(quantized, torch.randn(12, generator=generator)), torch.float32)
    with torch.no_grad():
        part.delta.normal_(0, 0.1, generator=generator)
    given = inputs.clone().requires_grad_()
    pull = torch.randn(2, 5, 12, generator=generator)
    (part(given) * pull).sum().backward()

    delta, x = part.delta.detach().double().requires_grad_(), inputs.double().requires_grad_()
    zero = 4 if quantized.zero_point is None else quantized.zero_point.double()[..., None]
    step = (quantized.scale.double() * (1 + delta))[..., None]
    dense = (step * (quantized.codes.double().view(12, 4, 8) - zero)).flatten(1)
    expected = x @ dense.T + part.layer.bias.detach().double()
    (expected * pull.double()).sum().backward()
    assert torch.allclose(part(inputs).double(), expected, atol=1e-5)
    assert torch.allclose(part.delta.grad.double(), delta.grad, atol=1e-4)
    assert torch.allclose(given.grad.double(), x.grad, atol=1e-5)


def test_a_scale_at_the_end_of_its_type_stays_finite_and_positive():
    layer = QuantLinear(rtn.rtn(torch.eye(4, 16), bits=3, group_size=16))
    layer.scale = torch.tensor([HUGE, HUGE, TINY, TINY], dtype=torch.bfloat16)[:, None]
    part = e2e_qp.LearnableScaleLinear(layer, torch.float32)
    with torch.no_grad():
        part.delta.copy_(torch.tensor([0.002, 0.5, -0.5, -2.0])[:, None])
    part.settle_()
    assert layer.scale.flatten().tolist() == [HUGE, HUGE, TINY, TINY]


@pytest.mark.parametrize("method, grid", [(rtn, {"bits": 8}), (rtn, {"symmetric": True}), (codebook, {"bits": 3})])
def test_in_bfloat16_the_product_is_that_of_the_dense_weights_to_the_bit(method, grid):
    model, generator = tiny.llama().bfloat16(), torch.Generator().manual_seed(0)
    method.quantize_(model, None, **(GRID | grid))
    layer = calibrate.layers(model)["model.layers.0.mlp.up_proj"]
    given = torch.randn(7, 64, generator=generator).bfloat16().requires_grad_()
    pull = torch.randn(7, 128, generator=generator).bfloat16()
    part = e2e_qp.LearnableScaleLinear(layer, torch.bfloat16)
    (part(given) * pull).sum().backward()

    ones = layer.quantized._replace(scale=torch.ones_like(layer.scale)).dense(torch.bfloat16).view(128, 4, 16)
    dense = (ones * layer.scale[..., None]).flatten(1)
    of_scale = ((pull.T @ given).view(128, 4, 16) * ones).sum(-1, dtype=torch.float32) * layer.scale.float()
    assert torch.equal(part(given), given @ dense.T)
    assert torch.equal(given.grad, pull @ dense)
    assert torch.equal(part.delta.grad, of_scale)


def test_blocks_computed_anew_end_in_the_same_bytes(monkeypatch):
    original, model, tokens = pair()
    again, options, ran = copy.deepcopy(model), {"steps": 4, "batch": 2, "learning_rate": 0.01}, []
    expected = e2e_qp.tune_(model, tokens, original, **options)
    kind = type(model.model.layers[0])
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *given, **named: ran.append(1) or forward(*given, **named))
    reference = divergence.remember(original, tokens)
    for share, passes in ((0, 2), (0.5, 1)):
        monkeypatch.setattr(activations, "SHARE", share)
        found, before = copy.deepcopy(again), len(ran)
        e2e_qp.tune_(found, tokens, reference, **options)
        assert len(ran) - before == 4 * passes * len(found.model.layers)
        tuned = {name: layer.scale for name, layer in calibrate.layers(found).items()}
        assert all(torch.equal(tuned[name], expected[name].scale) for name in expected)
        assert not any("forward" in block.__dict__ for block in found.model.layers)


def test_a_step_that_does_not_fit_into_memory_is_refused_before_the_work(monkeypatch):
    original, model, tokens = pair()
    free = type("Free", (), {"available": 20_000})
    monkeypatch.setattr(activations.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(divergence, "remember", lambda *_: pytest.fail("the work had begun"))
    with pytest.raises(MemoryError, match=r"48 positions .* fewer windows in a batch"):
        e2e_qp.tune_(model, tokens, original, steps=1, batch=2)


def test_loss_and_gradient_in_chunks_equal_those_of_the_whole(monkeypatch):
    from lib.models import logits

    original, model, tokens = pair()
    monkeypatch.setattr(logits, "CHUNK_BYTES", 5 * 4 * 256)  # five positions at a time
    reference = divergence.remember(original, tokens)
    states = torch.randn(23, 64, generator=torch.Generator().manual_seed(1))
    loss, gradient = e2e_qp._loss(states.clone(), logits.Projection.of(model), reference.rows(2, 1), 46)
    whole = states.clone().requires_grad_()
    p, q = original(tokens[2:3]).logits[0, :-1].log_softmax(-1), model.lm_head(whole).log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / 46
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(gradient, whole.grad, atol=1e-6)


@pytest.mark.parametrize("method, grid", [(rtn, {}), (gptq, {"symmetric": True}), (codebook, {"bits": 3})])
def test_tuning_brings_the_model_nearer_and_leaves_codes_and_model_whole(method, grid):
    original, model, tokens = pair(method, **grid)
    before, codes = kl(model, original, tokens), {n: m.codes.clone() for n, m in calibrate.layers(model).items()}
    learning = [parameter.requires_grad for parameter in model.parameters()]
    tuned = e2e_qp.tune_(model, tokens, original, steps=30, batch=2, learning_rate=0.02)
    assert kl(model, original, tokens) < 0.9 * before
    assert tuned.keys() == codes.keys()
    for name, layer in calibrate.layers(model).items():
        assert isinstance(layer, QuantLinear) and torch.equal(layer.codes, codes[name])
        assert layer.scale.dtype == torch.bfloat16 and (layer.scale > 0).all()
        assert torch.equal(tuned[name].scale, layer.scale)
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert model.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)


def test_the_loss_of_the_first_step_is_the_divergence_of_the_untuned_model():
    original, model, tokens = pair()
    before = kl(model, original, tokens)
    seen = []
    e2e_qp.tune_(model, tokens, original, steps=1, batch=6, on_step=lambda *step: seen.append(step))
    assert seen == [(1, pytest.approx(before, rel=1e-4))]


def test_every_window_is_seen_once_before_any_is_seen_again():
    drawn = [index for step in range(9) for index in schedule.windows(step, 2, 6, seed=3)]
    assert sorted(drawn[:6]) == sorted(drawn[6:12]) == sorted(drawn[12:]) == list(range(6))
    # an epoch of one seed is none of another's, nor of its own
    orders = {tuple(schedule.windows(epoch, 16, 16, seed)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9


def test_learning_rate_rises_and_falls():
    rates = [schedule.schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) > 0.98 and rates[-1] < 0.001
    assert rates[5:] == sorted(rates[5:], reverse=True) and schedule.schedule(0, 1) == 1


def interrupted(monkeypatch, steps):
    """A training that writes what step `steps` found before it takes the next one, and stops there."""
    monkeypatch.setattr("lib.jobs.EVERY", 0)
    write = trainer.Loop.write

    def once(self):
        write(self)
        if self.state.global_step == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Loop, "write", once)


def test_more_bits_get_a_lower_rate_and_mixed_ones_that_of_their_mean():
    model = tiny.llama()
    for bits, rate in ((2, 4e-3), (3, 2e-3), (4, 1e-3), (8, 6.25e-5)):
        done = copy.deepcopy(model)
        rtn.quantize_(done, tiny.tokens(1, 8), bits=bits, group_size=32)
        assert e2e_qp.rate_of(list(calibrate.layers(done).values())) == rate
    mixed = [
        types.SimpleNamespace(bits=bits, in_features=columns, out_features=64) for bits, columns in ((2, 192), (6, 64))
    ]
    assert e2e_qp.rate_of(mixed) == 2e-3


def test_a_stopped_job_resumes_to_the_same_bytes_and_refuses_other_arguments(tmp_path, monkeypatch):
    original, model, tokens = pair()
    again, options = copy.deepcopy(model), {"steps": 6, "batch": 2, "learning_rate": 0.01}
    expected = e2e_qp.tune_(model, tokens, original, **options)
    start = {name: layer.scale.clone() for name, layer in calibrate.layers(again).items()}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, 4)
        e2e_qp.tune_(again, tokens, original, **options, state=tmp_path)
    assert all(torch.equal(layer.scale, start[name]) for name, layer in calibrate.layers(again).items())
    with pytest.raises(ValueError, match=r"learning_rate=0\.01 there, 0\.02 here"):
        e2e_qp.tune_(again, tokens, original, **(options | {"learning_rate": 0.02}), state=tmp_path)
    with pytest.raises(ValueError, match="another job"):
        e2e_qp.tune_(again, tokens.flip(0), original, **options, state=tmp_path)
    seen = []
    step = e2e_qp._step
    monkeypatch.setattr(e2e_qp, "_step", lambda *a: seen.append(1) or step(*a))
    found = e2e_qp.tune_(again, tokens, original, **options, state=tmp_path)
    assert len(seen) == 2
    assert all(torch.equal(found[name].scale, expected[name].scale) for name in expected)


def test_two_runs_give_the_same_bytes_and_leave_the_global_seed_alone():
    original, model, tokens = pair()
    other, before = copy.deepcopy(model), torch.random.get_rng_state()
    first = e2e_qp.tune_(model, tokens, original, steps=3)
    second = e2e_qp.tune_(other, tokens, divergence.remember(original, tokens), steps=3)
    assert all(torch.equal(first[name].scale, second[name].scale) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_tuned_is_refused_before_the_work():
    original, model, tokens = pair()
    with pytest.raises(ValueError, match="has no quantized layers"):
        e2e_qp.tune_(original, tokens, original, steps=1)
    with pytest.raises(ValueError, match="steps=0"):
        e2e_qp.tune_(model, tokens, original, steps=0)
    with pytest.raises(ValueError, match="1 to 6 windows in a batch"):
        e2e_qp.tune_(model, tokens, original, steps=1, batch=7)
    for rate in (0.0, -1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"learning_rate={rate}; the scales move by a positive share"):
            e2e_qp.tune_(model, tokens, original, steps=1, learning_rate=rate)
    with pytest.raises(ValueError, match="reference remembers"):
        e2e_qp.tune_(model, tokens, divergence.remember(original, tokens.flip(0)), steps=1)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_scales(monkeypatch):
    original, model, tokens = pair()
    start = {name: layer.scale.clone() for name, layer in calibrate.layers(model).items()}
    monkeypatch.setattr(e2e_qp, "_step", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="loss is nan at step 1 of 5"):
        e2e_qp.tune_(model, tokens, original, steps=5)
    assert all(torch.equal(layer.scale, start[name]) for name, layer in calibrate.layers(model).items())
