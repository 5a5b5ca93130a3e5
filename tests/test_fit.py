"""Pruning to a budget: with a clock that is linear in the blocks, predictions and measurements must agree."""

import copy
import gc

import pytest

from lib.export import size
from lib.metrics import count, speed, throughput
from lib.models.blocks import blocks
from lib.pruners import depth, fit, probe
from lib.sources import models
from tests import tiny

FIXED, EACH = 0.03, 0.01  # seconds of a pass: the head, and each block


@pytest.fixture
def clocked(monkeypatch):
    """A tiny model whose passes take `FIXED` seconds and `EACH` for every block that runs."""
    now = [0.0]
    monkeypatch.setattr(gc, "collect", lambda: 0)  # before each run, of all that the tests have loaded
    monkeypatch.setattr(speed, "clock", lambda: now[0])
    model = tiny.llama(num_hidden_layers=6)

    def tick(seconds):
        return lambda *_: now.__setitem__(0, now[0] + seconds)

    for block in model.model.layers:
        block.register_forward_hook(tick(EACH))
    model.lm_head.register_forward_hook(tick(FIXED))
    return model


QUICK = {"prompt": 8, "new_tokens": 3, "rounds": 1}


@pytest.mark.parametrize("phase, tokens", [("decode", 1), ("prefill", 8)])
def test_a_speed_is_reached_with_the_fewest_blocks_and_predicted_right(clocked, phase, tokens):
    wanted = tokens / (FIXED + 4 * EACH)
    found = depth.fit_(clocked, tiny.tokens(), tokens_per_second=0.999 * wanted, phase=phase, **QUICK)
    assert len(found.removed) == 2 and len(blocks(clocked)) == 4
    assert found.predicted["tokens_per_second"] == pytest.approx(wanted)
    assert found.measured["tokens_per_second"].value == pytest.approx(wanted)
    assert found.errors["tokens_per_second"] < 1e-6 and found.errors["parameters"] == 0


def test_a_machine_that_slows_down_between_is_no_error(clocked, monkeypatch):
    now, pace, through = speed.clock, [1.0], probe.seconds

    def probed(*args, **options):
        found = through(*args, **options)
        pace[0] = 3.0  # from here on all takes three times as long
        return found

    monkeypatch.setattr(probe, "seconds", probed)
    monkeypatch.setattr(speed, "clock", lambda: pace[0] * now())
    wanted = 1 / (FIXED + 4 * EACH)
    found = depth.fit_(clocked, tiny.tokens(), tokens_per_second=0.999 * wanted, **QUICK)
    assert found.measured["tokens_per_second"].value == pytest.approx(wanted / 3)
    assert len(found.removed) == 2 and found.errors["tokens_per_second"] < 1e-6


def test_the_same_blocks_as_without_a_fit(clocked):
    expected = depth.choose(copy.deepcopy(clocked), tiny.tokens(), way="greedy", blocks=3)
    options = {"way": "greedy", "protect": [], "tokens_per_second": 0.999 / (FIXED + 3 * EACH)}
    assert depth.fit_(clocked, tiny.tokens(), **options, **QUICK).removed == expected


def test_a_size_is_predicted_to_the_byte_and_saved(clocked, tmp_path):
    clocked.config.architectures = ["LlamaForCausalLM"]
    whole = count.parameters(clocked)
    smaller = depth.without(clocked, [4, 5])
    wanted = size.predict(smaller) / 1e6
    found = fit.fit_(clocked, tiny.tokens(), megabytes=wanted, score="last", folder=tmp_path / "fit", **QUICK)
    assert found.removed == [5, 4] and found.errors["megabytes"] == 0
    assert found.measured["megabytes"].value == pytest.approx(wanted) == found.predicted["megabytes"]
    assert found.predicted["parameters"] == count.parameters(clocked) < whole
    loaded, _ = models.load(str(tmp_path / "fit"))
    assert len(blocks(loaded)) == 4


def test_memory_is_predicted_from_two_depths(clocked, monkeypatch):
    def invented(model, tokens):
        return throughput.exact(throughput.held(model) + 1e6 + 1e5 * len(blocks(model)), "bytes")

    monkeypatch.setattr(throughput, "peak", invented)
    monkeypatch.setattr(throughput, "LENGTH", 64)
    clocked.config.max_position_embeddings = 4096
    whole = invented(clocked, None).value
    found = fit.fit_(clocked, tiny.tokens(), memory_megabytes=whole / 1e6 - 0.4, score="last", **QUICK)
    assert found.removed == [5, 4] and found.errors["memory_megabytes"] < 1e-6
    assert found.measured["memory_megabytes"].value <= whole / 1e6 - 0.4


@pytest.mark.parametrize(
    "options, problem",
    [
        ({}, "no budget was given"),
        ({"tokens_per_second": 1e9}, "tokens_per_second=1000000000.0 of a model with 6 blocks"),
        ({"megabytes": 1.0, "phase": "decod"}, "phase='decod' is unknown; .*did you mean 'decode'"),
    ],
)
def test_budgets_that_cannot_be_met_leave_the_model_whole(clocked, options, problem):
    with pytest.raises(ValueError, match=problem):
        depth.fit_(clocked, tiny.tokens(), **options, **QUICK)
    assert len(blocks(clocked)) == 6


def test_a_size_that_cannot_be_met_is_refused_before_anything_is_timed(clocked, monkeypatch):
    monkeypatch.setattr(probe, "seconds", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(ValueError, match="megabytes=1e-06 of a model"):
        depth.fit_(clocked, tiny.tokens(), tokens_per_second=1.0, megabytes=1e-6, **QUICK)


def test_one_block_cannot_be_probed():
    with pytest.raises(ValueError, match="LlamaForCausalLM has 1 block; none can go"):
        probe.seconds(tiny.llama(num_hidden_layers=1), "decode")
