"""The studies of the notebooks: depths of one choice, and pruning with quantizing in both orders."""

import pytest
import torch

from lib.models.blocks import blocks, is_quantized
from lib.pruners import depth, importance, study
from lib.pruners.drop import drop_blocks_
from lib.quantizers import gptq
from tests import tiny

TOKENS = tiny.tokens(3, 24)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))


def model_of(count=6, **overrides):
    return tiny.llama(num_hidden_layers=count, **overrides)


@pytest.mark.parametrize("choice", ["block_influence", "greedy block_influence", "contiguous angular_distance"])
def test_plans_are_what_choosing_each_depth_by_itself_gives(choice):
    model, (way, score) = model_of(), study.named(choice)
    found = study.plans(model, TOKENS, [1, 3], choice)
    expected = {count: depth.choose(model, TOKENS, way=way, score=score, blocks=count) for count in (1, 3)}
    assert {count: sorted(gone) for count, gone in found.items()} == {n: sorted(each) for n, each in expected.items()}


def test_known_scores_are_not_computed_again(monkeypatch):
    monkeypatch.setattr(importance, "score", lambda *_, **__: pytest.fail("scored"))
    assert study.plans(model_of(), TOKENS, [2], "taylor", scores=[6, 5, 1, 2, 4, 3]) == {2: [2, 3]}


def test_greedy_plans_are_remembered(monkeypatch):
    model = model_of()
    found = study.plans(model, TOKENS, [2], "greedy last")
    monkeypatch.setattr(importance, "score", lambda *_, **__: pytest.fail("scored"))
    assert study.plans(model, TOKENS, [1, 2], "greedy last") == {1: [5], 2: [5, 4]} and found == {2: [5, 4]}


@pytest.mark.parametrize("choice, problem", [("greed last", "did you mean 'greedy'"), ("greedy lost", "'last'")])
def test_unknown_choices_are_refused(choice, problem):
    with pytest.raises(ValueError, match=problem):
        study.named(choice)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_rounding_does_not_mind_the_order_where_the_same_blocks_go():
    pair = [model_of(), model_of()]
    gone = study.both_orders_(pair, TOKENS, score="last", blocks=2, method="rtn", bits=4, group_size=32)
    assert list(gone.values()) == [[5, 4], [5, 4]] and torch.equal(*map(logits, pair))
    assert all(len(blocks(model)) == 4 and is_quantized(model.model.layers[0].mlp.up_proj) for model in pair)


def test_gptq_does_because_it_sees_the_inputs_of_the_pruned_model():
    pair = [model_of(), model_of()]
    gone = study.both_orders_(pair, TOKENS, score="random", blocks=2, method="gptq", bits=3, group_size=32)
    by_hand = drop_blocks_(model_of(), gone["pruned, then quantized"])
    gptq.quantize_(by_hand, TOKENS, bits=3, group_size=32)
    assert torch.equal(logits(by_hand), logits(pair[0])) and not torch.equal(*map(logits, pair))


def test_models_that_share_weights_are_refused():
    model = model_of()
    with pytest.raises(ValueError, match="two that share no weights are needed"):
        study.both_orders_([model, depth.without(model, [0])], TOKENS, score="last", blocks=1, method="rtn", bits=4)
