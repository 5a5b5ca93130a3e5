"""Budgets: by number, share, weights, bytes, memory and speed; and what is refused before any work."""

import itertools
import math

import pytest

from lib.export import plain
from lib.metrics import count
from lib.pruners import depth, importance, probe
from lib.pruners.budget import Budget
from lib.pruners.depth import choose
from tests import tiny

TOKENS = tiny.tokens(3, 24)


def model_of(count=6, **overrides):
    return tiny.llama(num_hidden_layers=count, **overrides)


def test_a_share_is_rounded_up_and_several_demands_are_all_met():
    model = model_of()
    assert len(choose(model, TOKENS, score="last", ratio=0.25)) == 2
    assert len(choose(model, TOKENS, score="last", ratio=0.5)) == 3 and choose(model, TOKENS, ratio=0) == []
    assert choose(model, TOKENS, score="last", ratio=0.1, blocks=3) == [5, 4, 3]


@pytest.mark.parametrize("way", depth.WAYS)
def test_a_budget_of_parameters_takes_the_fewest_blocks(way):
    model = model_of()
    each = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    whole = count.parameters(model)
    options = {"way": way, "score": "block_influence"}
    assert len(choose(model, TOKENS, **options, parameters=whole - 2 * each)) == 2
    assert len(choose(model, TOKENS, **options, parameters=whole - 2 * each - 1)) == 3
    assert choose(model, TOKENS, **options, parameters=whole) == []


def test_a_budget_of_megabytes_is_kept_to_the_byte(tmp_path):
    reached = depth.without(model_of(), [1, 4])
    size = count.artifact_bytes(plain.save(reached, reached.tokenizer, tmp_path / "saved"))
    assert len(choose(model_of(), TOKENS, score="last", megabytes=size / 1e6)) == 2
    assert len(choose(model_of(), TOKENS, score="last", megabytes=(size - 1) / 1e6)) == 3


def test_budgets_of_speed_and_memory_follow_the_lines_through_measured_depths():
    model = model_of()
    lines = {
        "tokens_per_second": probe.Line.through([(6, 0.07), (4, 0.05), (2, 0.03)]),
        "memory_megabytes": probe.Line.through([(6, 70e6), (2, 30e6)]),
    }
    for wanted, removed in (({"tokens_per_second": 20.0}, 2), ({"tokens_per_second": 20.1}, 3)):
        budget = Budget(model, lines=lines, **wanted)
        assert len(choose(model, TOKENS, score="last", budget=budget)) == removed
    budget = Budget(model, lines=lines, memory_megabytes=40.01)
    assert len(choose(model, TOKENS, score="last", budget=budget)) == 3
    with pytest.raises(ValueError, match=r"tokens_per_second=51.*leads to 50"):
        Budget(model, lines=lines, tokens_per_second=51)


def test_lines_go_through_exact_points_and_balance_relative_errors():
    line = probe.Line.through([(30, 0.31), (10, 0.11)])
    assert (line.fixed, line.each) == pytest.approx((0.01, 0.01)) and line.at(20) == pytest.approx(0.21)
    # by hand: minimise Σ (1 - (a + b n) / y)² over a line and a point that lies 10 % above it
    points = [(1, 2.0), (2, 3.3), (3, 4.0)]
    found = probe.Line.through(points)

    def loss(fixed, each):
        return sum((1 - (fixed + each * n) / y) ** 2 for n, y in points)

    best = loss(found.fixed, found.each)
    assert all(loss(found.fixed + a, found.each + b) > best for a, b in itertools.product((-0.01, 0.01), repeat=2))
    with pytest.raises(ValueError, match="lie at one depth"):
        probe.Line.through([(3, 1.0), (3, 1.1)])
    assert probe.depths(30) == [30, 20, 10] and probe.depths(2) == [2, 1]


@pytest.mark.parametrize(
    "wanted, problem",
    [
        ({}, "no budget was given; .*blocks, ratio, parameters"),
        ({"blocks": 6}, r"blocks=6 of a model with 6 blocks, 0 of them protected.*is 5 of them, one must stay"),
        ({"blocks": 4, "protect": [0, 1, 2]}, "blocks=4 of a model with 6 blocks, 3 of them protected.*is 3 of them"),
        ({"blocks": -1}, "blocks=-1; choose a whole number from 0"),
        ({"blocks": 1.5}, "blocks=1.5; choose a whole number"),
        ({"blocks": True}, "blocks=True; choose a whole number"),
        ({"ratio": 1.0}, "ratio=1.0; the share of blocks that goes is 0 or more and below 1"),
        ({"ratio": 0.9}, "ratio=0.9 of a model with 6 blocks.*is 5 of them"),
        ({"parameters": 10}, r"parameters=10 of a model.*leads to \d"),
        ({"megabytes": 0.001}, "megabytes=0.001 of a model.*leads to 0.2"),
        ({"megabytes": math.nan}, "megabytes=nan; choose a number"),
        ({"blocks": 1, "protect": range(6)}, "protects all 6 blocks; at least one must be left"),
        ({"blocks": 1, "protect": [6]}, r"\[6\] are no blocks; the model has blocks 0 to 5"),
        ({"blocks": 1, "way": "greed"}, "way='greed' is unknown; .*did you mean 'greedy'"),
        ({"blocks": 1, "score": "tailor"}, "'tailor' is unknown; .*did you mean 'taylor'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_scored(wanted, problem, monkeypatch):
    monkeypatch.setattr(importance, "score", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(ValueError, match=problem):
        choose(model_of(), TOKENS, **wanted)


def test_an_unknown_budget_is_refused_by_name():
    with pytest.raises(TypeError, match=r"budget 'megabyte' is unknown; .*did you mean 'megabytes'"):
        choose(model_of(), TOKENS, megabyte=3)
