"""The recipe: nearer than its first step alone, at the size asked for, resumable, refusing what it can't mean."""

import copy
import json

import pytest
import torch

from lib import quantizers
from lib.export import compressed_tensors
from lib.metrics import count, divergence
from lib.quantized.linear import QuantLinear
from lib.quantizers import best, calibrate, e2e_qp, gptq, gptq_signround, sensitivity, time_budget
from tests import tiny


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3])
    )


@pytest.fixture
def quick(monkeypatch):
    """A tiny model's steps are too quick to time; two epochs are enough."""
    monkeypatch.setattr(time_budget, "EPOCHS", 2)
    monkeypatch.setattr(e2e_qp, "LEARNING_RATE", 0.08)


def test_it_comes_nearer_than_gptq_alone(quick):
    original, tokens = tiny.llama(), tiny.tokens(8, 32)
    alone, model = copy.deepcopy(original), copy.deepcopy(original)
    codes = gptq.quantize_(alone, tokens, bits=2, group_size=32)
    done = quantizers.best_(model, tokens, bits=2, minutes=1, group_size=32)
    assert done.keys() == codes.keys()
    far, near = (divergence.measure(each, original, tokens)["kl_divergence"].value for each in (alone, model))
    assert near < 0.95 * far


def test_zero_points_are_halves_at_two_bits_unless_said_otherwise():
    for given, levels in (
        ({"bits": 2}, "half"),
        ({"bits": 3}, "integer"),
        ({"bits": 2, "levels": "integer"}, "integer"),
    ):
        done = quantizers.best_(tiny.llama(num_hidden_layers=1), tiny.tokens(2, 16), steps=0, group_size=32, **given)
        assert {each.levels for each in done.values()} == {levels}


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

    monkeypatch.setattr(gptq_signround, "quantize_", quantize_)
    monkeypatch.setattr(e2e_qp, "seconds_per_step", lambda *_: 1e9)
    monkeypatch.setattr(time_budget, "predict", lambda *_, **__: parts)
    model, tokens = tiny.llama(), tiny.tokens(40, 16)
    # 16 windows of 5 passes, 4 blocks of 2 seconds: 88 seconds beside the reserve
    assert best.quantize_(model, tokens, bits=3, minutes=90 / 60 / 0.9, group_size=32) == {}
    assert seen == [(time_budget.FEWEST, [0] * 4)]
    best.quantize_(model, tokens, bits=3, minutes=100, group_size=32)
    assert seen[1] == (40, [time_budget.EPOCHS * 40 // best.BATCH] * 4)


def test_with_steps_two_runs_give_the_same_bytes_however_fast_the_machine_is(monkeypatch):
    original, tokens = tiny.llama(), tiny.tokens(5, 24)
    first = quantizers.best_(copy.deepcopy(original), tokens, bits=2, steps=4, group_size=32)
    monkeypatch.setattr(time_budget, "FIRST", 1e-12)  # a clock by which nothing could be afforded
    again = quantizers.best_(copy.deepcopy(original), tokens, bits=2, steps=4, minutes=1e-6, group_size=32)
    assert same(first, again)
    alone = gptq.quantize_(copy.deepcopy(original), tokens, bits=2, group_size=32, levels="half")
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
        patch.setattr(e2e_qp, "tune_", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        quantizers.best_(copy.deepcopy(original), tokens, **options)
    monkeypatch.setattr(e2e_qp, "seconds_per_step", lambda *_: 1e9)  # a slower clock must not matter any more
    assert same(quantizers.best_(copy.deepcopy(original), tokens, **options), expected)
    with pytest.raises(ValueError, match="bits=3 there, 2 here"):
        quantizers.best_(copy.deepcopy(original), tokens, **(options | {"bits": 2}))


def test_a_budget_holds_where_embedding_and_head_are_two_matrices(tmp_path):
    model, tokens = tiny.llama(num_hidden_layers=2, tie_word_embeddings=False), tiny.tokens(4, 24)
    done = quantizers.best_(model, tokens, megabytes=0.058, steps=2, group_size=32, state=tmp_path / "state")
    plan = json.loads((tmp_path / "state" / "plan.json").read_text())["bits"]
    assert {name: each.bits for name, each in done.items()} == plan and plan["model.embed_tokens"] != plan["lm_head"]
    compressed_tensors.save(model, model.tokenizer, tmp_path / "small")
    assert 0.055e6 < count.artifact_bytes(tmp_path / "small") <= 0.058e6


@pytest.mark.parametrize(
    "options, said",
    [
        ({"bits": 0}, "bits=0 for model.layers.0"),
        ({"bits": 9}, "bits=9 for model.layers.0"),
        ({"bits": True}, "bits=True for model.layers.0"),
        ({"bits": 3, "minutes": float("inf")}, "minutes=inf; the recipe needs a positive number"),
        ({"bits": 3, "minutes": float("nan")}, "minutes=nan; the recipe needs a positive number"),
        ({"megabytes": 0.001}, r"megabytes=0\.001 is too small: with 2 bits everywhere the artifact has 0\.0\d+ MB"),
        ({"megabytes": float("nan")}, "megabytes=nan; a budget is a positive number"),
        ({"megabytes": float("inf")}, "megabytes=inf; a budget is a positive number"),
        ({"megabytes": 0}, "megabytes=0; a budget is a positive number"),
    ],
)
@pytest.mark.parametrize("steps", [None, 2])
def test_what_is_refused_leaves_no_trace_in_the_folder(monkeypatch, tmp_path, options, said, steps):
    model, tokens = tiny.llama(num_hidden_layers=1), tiny.tokens(2, 16)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=said):
        patch.setattr(time_budget, "predict", lambda *_, **__: pytest.fail("the work had begun"))
        patch.setattr(sensitivity, "measure", lambda *_, **__: pytest.fail("the work had begun"))
        patch.setattr(divergence, "remember", lambda *_, **__: pytest.fail("the work had begun"))
        quantizers.best_(model, tokens, **options, steps=steps, group_size=32, state=tmp_path)
    assert not any(tmp_path.iterdir())
    quantizers.best_(model, tokens, bits=3, steps=0, group_size=32, state=tmp_path)  # and is no other job


def test_an_embedding_that_takes_no_grid_is_refused_before_the_sensitivities(monkeypatch, tmp_path):
    class Halved(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) / 2

    model, tokens = tiny.llama(), tiny.tokens(2, 16)
    model.model.embed_tokens = Halved(256, 64)
    monkeypatch.setattr(sensitivity, "measure", lambda *_, **__: pytest.fail("the work had begun"))
    with pytest.raises(ValueError, match="Halved does more than to look up rows"):
        quantizers.best_(model, tokens, megabytes=0.09, steps=0, group_size=32, state=tmp_path)
    assert not any(tmp_path.iterdir())


def test_windows_that_do_not_fit_into_memory_leave_no_trace_in_the_folder(monkeypatch, tmp_path):
    free = type("Free", (), {"available": 10**5})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    for steps in (None, 2):
        with pytest.raises(MemoryError, match="windows or fewer"):
            quantizers.best_(tiny.llama(), tiny.tokens(4, 32), bits=3, steps=steps, group_size=32, state=tmp_path)
        assert not any(tmp_path.iterdir())


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
