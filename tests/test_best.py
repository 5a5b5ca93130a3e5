"""The recipe: nearer than its first step alone, at the size asked for, resumable, refusing what it can't mean."""

import copy
import json

import pytest
import torch

from lib import quantizers
from lib.export import compressed_tensors
from lib.metrics import count, divergence
from lib.quantizers import best, calibrate, gptq, pace, refined, scales
from lib.quantizers.linear import QuantLinear
from tests import tiny


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3])
    )


@pytest.fixture
def quick(monkeypatch):
    """A tiny model's steps are too quick to time; two epochs are enough."""
    monkeypatch.setattr(pace, "EPOCHS", 2)
    monkeypatch.setattr(scales, "LEARNING_RATE", 0.08)


def test_it_comes_nearer_than_gptq_alone(quick):
    original, tokens = tiny.llama(), tiny.tokens(8, 32)
    alone, model = copy.deepcopy(original), copy.deepcopy(original)
    codes = gptq.quantize_(alone, tokens, bits=2, group_size=32)
    done = quantizers.best_(model, tokens, bits=2, minutes=1, group_size=32)
    assert done.keys() == codes.keys()
    far, near = (divergence.measure(each, original, tokens)["kl_divergence"].value for each in (alone, model))
    assert near < 0.95 * far


def test_a_budget_in_megabytes_holds_for_the_saved_folder(quick, tmp_path):
    model, tokens = tiny.llama(), tiny.tokens(4, 24)
    done = quantizers.best_(model, tokens, megabytes=0.09, minutes=1, group_size=32)
    assert {"model.embed_tokens", "lm_head"} < done.keys()
    compressed_tensors.save(model, model.tokenizer, tmp_path / "small")
    assert 0.08e6 < count.artifact_bytes(tmp_path / "small") <= 0.09e6
    again, _ = compressed_tensors.load(tmp_path / "small")
    assert torch.equal(again(tokens[:1]).logits, model(tokens[:1]).logits)


def test_little_time_means_fewer_windows_and_no_learning(monkeypatch):
    seen, parts = [], {"pass": 1.0, "block": 2.0, "step": 1.0, "measuring": 0.0, "embedding": 0.0}

    def quantize_(_, tokens, bits, steps, **job):
        seen.append((len(tokens), [steps(f"model.layers.{index}") for index in range(4)]))
        return {}

    monkeypatch.setattr(refined, "quantize_", quantize_)
    monkeypatch.setattr(scales, "seconds_per_step", lambda *_: 1e9)
    monkeypatch.setattr(pace, "predict", lambda *_, **__: parts)
    model, tokens = tiny.llama(), tiny.tokens(40, 16)
    # 16 windows of 5 passes, 4 blocks of 2 seconds: 88 seconds beside the reserve
    assert best.quantize_(model, tokens, bits=3, minutes=90 / 60 / 0.9, group_size=32) == {}
    assert seen == [(pace.FEWEST, [0] * 4)]
    best.quantize_(model, tokens, bits=3, minutes=100, group_size=32)
    assert seen[1] == (40, [pace.EPOCHS * 40 // best.BATCH] * 4)


def test_with_steps_two_runs_give_the_same_bytes_however_fast_the_machine_is(monkeypatch):
    original, tokens = tiny.llama(), tiny.tokens(5, 24)
    first = quantizers.best_(copy.deepcopy(original), tokens, bits=2, steps=4, group_size=32)
    monkeypatch.setattr(pace, "FIRST", 1e-12)  # a clock by which nothing could be afforded
    again = quantizers.best_(copy.deepcopy(original), tokens, bits=2, steps=4, minutes=1e-6, group_size=32)
    assert same(first, again)
    alone = gptq.quantize_(copy.deepcopy(original), tokens, bits=2, group_size=32)
    none = quantizers.best_(copy.deepcopy(original), tokens, bits=2, steps=0, group_size=32)
    assert same(none, alone) and not same(none, first)


def test_what_the_clock_decided_is_kept_so_that_a_resumed_job_ends_in_the_same_bytes(quick, tmp_path, monkeypatch):
    original, tokens = tiny.llama(), tiny.tokens(6, 24)
    options = {"bits": 3, "minutes": 1, "group_size": 32, "state": tmp_path / "first"}
    expected = quantizers.best_(copy.deepcopy(original), tokens, **options)
    plan = json.loads((tmp_path / "first" / "plan.json").read_text())
    assert (plan["start"]["windows"], plan["rounding"], plan["steps"]) == (6, 6, 12)
    assert [plan[f"rounding of model.layers.{index}"] for index in range(4)] == [6] * 4

    options["state"] = tmp_path / "second"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scales, "tune_", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        quantizers.best_(copy.deepcopy(original), tokens, **options)
    monkeypatch.setattr(scales, "seconds_per_step", lambda *_: 1e9)  # a slower clock must not matter any more
    assert same(quantizers.best_(copy.deepcopy(original), tokens, **options), expected)
    with pytest.raises(ValueError, match="bits=3 there, 2 here"):
        quantizers.best_(copy.deepcopy(original), tokens, **(options | {"bits": 2}))


def test_what_it_cannot_mean_is_refused_before_the_work():
    model, tokens = tiny.llama(), tiny.tokens(2, 16)
    for options in ({}, {"bits": 4, "megabytes": 1.0}):
        with pytest.raises(ValueError, match="the recipe takes one of them"):
            quantizers.best_(model, tokens, **options)
    with pytest.raises(ValueError, match="minutes=0"):
        quantizers.best_(model, tokens, bits=4, minutes=0)
    with pytest.raises(ValueError, match="steps=-1"):
        quantizers.best_(model, tokens, bits=4, steps=-1)
    with pytest.raises(ValueError, match="group_size=48 does not divide 64"):
        quantizers.best_(model, tokens, bits=4, group_size=48)
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())
