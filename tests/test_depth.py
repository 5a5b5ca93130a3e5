"""Choosing blocks: one shot, one span, greedy; against brute force, by every budget, and resumed."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.models.blocks import blocks
from lib.pruners import depth, greedy, importance
from lib.pruners.depth import choose, lowest, prune_
from lib.pruners.importance import angular_distance
from tests import tiny

TOKENS = tiny.tokens(3, 24)


def model_of(count=6, **overrides):
    return tiny.llama(num_hidden_layers=count, **overrides)


def mean_nll(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, labels=tokens).loss.item()


def test_one_shot_removes_the_lowest_scores():
    model = model_of()
    scores = importance.score("block_influence", model, TOKENS)
    removed = choose(model, TOKENS, score="block_influence", blocks=3)
    assert removed == sorted(range(6), key=lambda index: scores[index])[:3]
    assert prune_(model, TOKENS, score="block_influence", blocks=3) == removed and len(blocks(model)) == 3


@pytest.mark.parametrize("length", [1, 2, 4])
def test_contiguous_takes_the_span_that_turns_the_last_token_least(length):
    model = model_of()
    distances = angular_distance.score(model, TOKENS, span=length)
    start = min(range(6 - length + 1), key=lambda index: distances[index])
    found = choose(model, TOKENS, way="contiguous", score="angular_distance", blocks=length)
    assert found == list(range(start, start + length))


def test_contiguous_adds_up_any_other_score():
    model = model_of()
    scores = importance.score("leave_one_out", model, TOKENS)
    sums = [sum(scores[start : start + 2]) for start in range(5)]
    start = sums.index(min(sums))
    assert choose(model, TOKENS, way="contiguous", blocks=2) == [start, start + 1]
    assert choose(model, TOKENS, way="contiguous", blocks=0) == []


def test_greedy_equals_trying_every_block_at_every_step():
    model, removed = model_of(), []
    for _ in range(3):
        losses = {}
        for block in set(range(6)) - set(removed):
            shallow = depth.drop_blocks_(copy.deepcopy(model), [*removed, block])
            losses[block] = mean_nll(shallow, TOKENS)
        removed.append(min(losses, key=losses.get))
    assert choose(model, TOKENS, way="greedy", blocks=3) == removed
    assert choose(model, TOKENS, way="greedy", blocks=1) == removed[:1] == choose(model, TOKENS, blocks=1)


def test_greedy_by_divergence_compares_with_the_original_throughout():
    model = model_of(5)

    def log_probabilities(dropped):
        with torch.no_grad():
            shallow = depth.drop_blocks_(copy.deepcopy(model), dropped)
            return shallow(TOKENS).logits[:, :-1].double().log_softmax(-1)

    p, removed = log_probabilities([]), []
    for _ in range(3):
        lost = {}
        for block in set(range(5)) - set(removed):
            lost[block] = (p.exp() * (p - log_probabilities([*removed, block]))).sum(-1).mean().item()
        removed.append(min(lost, key=lost.get))
    assert choose(model, TOKENS, way="greedy", score="divergence", blocks=3) == removed


def test_greedy_resumes_and_goes_deeper_from_where_it_stopped(tmp_path, monkeypatch):
    model, calls, step = model_of(), [], greedy._step
    undisturbed = choose(model, TOKENS, way="greedy", blocks=4)

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(greedy, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        choose(model, TOKENS, way="greedy", blocks=4, state=tmp_path / "state")
    assert choose(model, TOKENS, way="greedy", blocks=4, state=tmp_path / "state") == undisturbed and len(calls) == 5
    assert choose(model, TOKENS, way="greedy", blocks=5, state=tmp_path / "state")[:4] == undisturbed
    assert (
        len(calls) == 6 and choose(model, TOKENS, way="greedy", blocks=2, state=tmp_path / "state") == undisturbed[:2]
    )
    first = json.loads((tmp_path / "state" / "removed-0000.json").read_text())
    assert min(first["scores"], key=first["scores"].get) == str(first["block"]) == str(undisturbed[0])


def test_greedy_refuses_the_state_of_another_job(tmp_path):
    choose(model_of(), TOKENS, way="greedy", blocks=1, state=tmp_path)
    with pytest.raises(ValueError, match="score=leave_one_out there, block_influence here"):
        choose(model_of(), TOKENS, way="greedy", score="block_influence", blocks=1, state=tmp_path)
    with pytest.raises(ValueError, match=r"holds another job .*model="):
        choose(model_of(seed=1), TOKENS, way="greedy", blocks=1, state=tmp_path)
    with pytest.raises(ValueError, match=r"holds another job .*calibration="):
        choose(model_of(), TOKENS[:2], way="greedy", blocks=1, state=tmp_path)


@pytest.mark.parametrize("way", depth.WAYS)
def test_protected_blocks_stay(way):
    removed = choose(model_of(), TOKENS, way=way, protect=iter([0, 3, 5]), blocks=2)
    assert len(set(removed)) == 2 and not {0, 3, 5} & set(removed)


@pytest.mark.parametrize("way", depth.WAYS)
def test_what_the_score_protects_stays(way):
    removed = choose(model_of(9), TOKENS, way=way, score="taylor_plus", blocks=3)
    assert sorted(removed) == [4, 5, 6]
    with pytest.raises(ValueError, match=r"protects|taylor_plus|removed|first=4"):
        choose(model_of(9), TOKENS, way=way, score="taylor_plus", blocks=4)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.data())
def test_lowest_leaves_only_scores_that_are_not_lower(scores, data):
    amount = data.draw(st.integers(0, len(scores) - 1))
    removed = lowest(scores, amount)
    kept = [value for index, value in enumerate(scores) if index not in removed]
    assert len(removed) == amount == len(set(removed)) and removed == sorted(removed)
    assert all(scores[index] <= min(kept) for index in removed)


def test_lowest_picks_the_least_important():
    assert lowest([3.0, -1.0, 2.0, 0.5], 2) == [1, 3]
    assert lowest([1.0, 1.0, 1.0], 1) == [2] and lowest([1.0, 2.0], 0) == []


@pytest.mark.parametrize("amount", [3, -1, 4, 1.0, True])
def test_lowest_refuses_counts_that_leave_no_block(amount):
    with pytest.raises(ValueError, match="of 3 blocks to remove; choose 0 to 2"):
        lowest([1.0, 2.0, 3.0], amount)


def test_lowest_refuses_nan_and_protected_blocks():
    with pytest.raises(ValueError, match=r"blocks \[1\] are NaN"):
        lowest([1.0, float("nan")], 1)
    assert lowest([math.inf, 2.0, 1.0], 2) == [1, 2]
    with pytest.raises(ValueError, match=r"protects all but 1 of the blocks that may go \(\[1\]\)"):
        lowest([math.inf, 2.0, math.inf], 2)


def test_blocks_of_different_kinds_are_refused_before_anything_is_scored(monkeypatch):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 2}
    monkeypatch.setattr(importance, "score", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(ValueError, match=r"mlp is a Qwen3Moe.*supported are blocks that are all alike"):
        choose(tiny._build("Qwen3Moe", 0, {**experts, "head_dim": 16}), TOKENS, blocks=1)


def test_no_span_between_protected_blocks():
    with pytest.raises(ValueError, match=r"no 2 neighbouring blocks among \[1, 3, 5\] meet this budget"):
        choose(model_of(), TOKENS, way="contiguous", protect=[0, 2, 4], blocks=2)
