"""GPTQ's codes refined by SignRound: starts where GPTQ ends, comes nearer, takes bits by layer, resumes."""

import copy

import pytest
import torch

from lib.metrics import divergence
from lib.models import capture
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, gptq, gptq_signround, signround
from tests import tiny


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3])
    )


@pytest.fixture(scope="module")
def original():
    return tiny.llama()


def test_without_steps_it_is_gptq(original):
    tokens = tiny.tokens(4, 24)
    plain = gptq.quantize_(copy.deepcopy(original), tokens, bits=3, group_size=32)
    assert same(gptq_signround.quantize_(copy.deepcopy(original), tokens, bits=3, group_size=32, steps=0), plain)


def test_it_is_nearer_to_the_original_than_gptq_and_than_rounding_from_the_nearest_code(original):
    tokens, found = tiny.tokens(16, 32), {}
    for name, method in {"gptq": gptq, "signround": signround, "gptq_signround": gptq_signround}.items():
        model, options = copy.deepcopy(original), {} if method is gptq else {"steps": 40}
        method.quantize_(model, tokens, bits=2, group_size=32, **options)
        found[name] = divergence.measure(model, original, tokens)["kl_divergence"].value
    assert found["gptq_signround"] < min(found["gptq"], found["signround"])


def test_finding_the_first_codes_leaves_the_block_as_it_was(original):
    model, tokens = copy.deepcopy(original), tiny.tokens(2, 16)
    captured = capture.capture(model, tokens)
    block, plan = calibrate.blocks(model)[0], gptq_signround.widths(model, 4)
    before = {name: weight.clone() for name, weight in block.state_dict().items()}
    starts = gptq_signround.first(block, captured.hidden, captured.calls[0], "model.layers.0", plan, 32)
    assert set(starts) == set(calibrate.linears(block))
    assert all(torch.equal(weight, before[name]) for name, weight in block.state_dict().items())
    seconds = gptq_signround.seconds(model, tokens, group_size=32)
    assert min(seconds) > 0 and all(torch.equal(weight, before[name]) for name, weight in block.state_dict().items())


def test_layers_may_have_bits_of_their_own(original):
    names = list(calibrate.layers(original))
    plan = {name: 2 if "mlp" in name else 4 for name in names}
    model, tokens = copy.deepcopy(original), tiny.tokens(2, 16)
    done = gptq_signround.quantize_(model, tokens, bits=plan, group_size=32, steps=2)
    assert {name: each.bits for name, each in done.items()} == plan
    with pytest.raises(ValueError, match="is missing; all layers"):
        gptq_signround.quantize_(copy.deepcopy(original), tokens, bits={names[0]: 4}, group_size=32)


def test_bits_are_all_checked_before_the_work(original, tmp_path, monkeypatch):
    names, model, tokens = list(calibrate.layers(original)), copy.deepcopy(original), tiny.tokens(2, 16)
    monkeypatch.setattr(capture, "capture", lambda *_, **__: pytest.fail("the work had begun"))
    plan = dict.fromkeys(names, 3)
    for bits, said in (
        (plan | {names[-1]: 9}, f"bits=9 for {names[-1]}"),
        (plan | {names[-1]: 1}, f"bits=1 for {names[-1]}"),
        ({}, f"bits name 0 of 28 layers, {sorted(names)[0]} is missing"),
        (None, f"bits=None for {names[0]}"),
        (2.5, rf"bits=2\.5 for {names[0]}"),
    ):
        with pytest.raises(ValueError, match=said):
            gptq_signround.quantize_(model, tokens, bits=bits, group_size=32, steps=2, state=tmp_path)
    assert not any(tmp_path.iterdir())
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())


def test_steps_may_be_asked_for_block_by_block(original):
    tokens, asked = tiny.tokens(8, 32), []
    options = {"bits": 2, "group_size": 32}
    constant = gptq_signround.quantize_(copy.deepcopy(original), tokens, **options, steps=12)
    given = lambda name: asked.append(name) or 12  # noqa: E731
    assert same(gptq_signround.quantize_(copy.deepcopy(original), tokens, **options, steps=given), constant)
    assert asked == [f"model.layers.{index}" for index in range(4)]
    none = gptq_signround.quantize_(copy.deepcopy(original), tokens, **options, steps=0)
    found = gptq_signround.quantize_(
        copy.deepcopy(original), tokens, **options, steps=lambda name: 12 * name.endswith("0")
    )
    first = [name for name in found if name.startswith("model.layers.0.")]
    assert same({name: found[name] for name in first}, {name: constant[name] for name in first})
    assert not same(found, constant) and not same(found, none)


def test_a_killed_run_resumes_to_the_same_bytes_and_refuses_other_settings(original, tmp_path, monkeypatch):
    tokens, options = tiny.tokens(3, 16), {"bits": 3, "group_size": 32, "steps": 3, "state": tmp_path}
    expected = gptq_signround.quantize_(copy.deepcopy(original), tokens, **(options | {"state": None}))
    reconstruct, calls = signround.reconstruct, []

    def stops(*args, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return reconstruct(*args, **settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(signround, "reconstruct", stops)
        gptq_signround.quantize_(copy.deepcopy(original), tokens, **options)
    assert same(gptq_signround.quantize_(copy.deepcopy(original), tokens, **options), expected)
    with pytest.raises(ValueError, match="steps=3 there, 4 here"):
        gptq_signround.quantize_(copy.deepcopy(original), tokens, **(options | {"steps": 4}))
