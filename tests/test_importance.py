"""Block scores against brute force: really dropping the block, and transformers' own hidden states."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lib.pruners import importance
from lib.pruners.depth import drop_blocks_
from tests import tiny

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma2"]


def mean_nll(model, tokens):
    """The loss that transformers itself computes, which shifts the labels by one."""
    with torch.no_grad():
        return model(input_ids=tokens, labels=tokens).loss.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_leave_one_out_equals_dropping_each_block(family):
    model, tokens = getattr(tiny, family)(), tiny.tokens(5, 24)
    whole = mean_nll(model, tokens)
    dropped = [mean_nll(drop_blocks_(copy.deepcopy(model), [index]), tokens) - whole for index in range(4)]
    assert importance.leave_one_out(model, tokens) == pytest.approx(dropped, abs=2e-5)
    assert max(dropped) - min(dropped) > 1e-3


def test_leave_one_out_with_blocks_that_see_different_masks():
    model, tokens = tiny.gemma2(sliding_window=8, num_hidden_layers=5), tiny.tokens(3, 40)
    whole = mean_nll(model, tokens)
    dropped = [mean_nll(drop_blocks_(copy.deepcopy(model), [index]), tokens) - whole for index in range(5)]
    assert importance.leave_one_out(model, tokens) == pytest.approx(dropped, abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_block_influence_equals_its_definition(family):
    model, tokens, states = getattr(tiny, family)(), tiny.tokens(3, 24), []
    # transformers' last hidden state is normed already, so the blocks' outputs are read by hooks
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda _, args, kwargs: states.append(args[0].double()), with_kwargs=True)
    last = model.model.layers[-1].register_forward_hook(lambda _, args, out: states.append(out.double()))
    with torch.no_grad():
        model(tokens)
    last.remove()
    expected = []
    for before, after in itertools.pairwise(states):
        cosines = [x @ y / (x.norm() * y.norm()) for x, y in zip(before.flatten(0, 1), after.flatten(0, 1))]
        expected.append(1 - torch.stack(cosines).mean().item())
    assert importance.block_influence(model, tokens) == pytest.approx(expected, abs=1e-5)


def test_a_block_that_does_nothing_scores_zero():
    model = tiny.llama()
    block = model.model.layers[2]
    for layer in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(layer.weight)
    assert importance.leave_one_out(model, tiny.tokens())[2] == 0
    influence = importance.block_influence(model, tiny.tokens())
    assert influence[2] == pytest.approx(0, abs=1e-6) and min(influence[:2] + influence[3:]) > 1e-3


def test_the_blocks_before_the_missing_one_are_not_run_again():
    model, runs = tiny.llama(), []
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    importance.leave_one_out(model, tiny.tokens())
    assert len(runs) == 4 * 5 // 2 and [runs.count(index) for index in range(4)] == [1, 2, 3, 4]


def test_batches_of_windows_make_no_difference(monkeypatch):
    model, tokens = tiny.llama(), tiny.tokens(5, 24)
    whole = [score(model, tokens) for score in importance.SCORES.values()]
    monkeypatch.setattr(importance, "BATCH", 2)
    for score, expected in zip(importance.SCORES.values(), whole):
        assert score(model, tokens) == pytest.approx(expected, abs=1e-5)


def test_the_model_is_left_as_it_was():
    model = tiny.llama().train()
    before = copy.deepcopy(model.state_dict())
    for name in importance.SCORES:
        assert len(importance.score(name, model, tiny.tokens())) == 4
    assert model.training and all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(block) for block in model.model.layers)


def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match=r"'leave_one' is unknown; .*block_influence, leave_one_out; did you mean"):
        importance.score("leave_one", tiny.llama(), tiny.tokens())


@pytest.mark.parametrize("name", importance.SCORES)
def test_windows_of_one_token_are_refused(name):
    with pytest.raises(ValueError, match="windows of 1 token"):
        importance.score(name, tiny.llama(), tiny.tokens(4, 1))


def test_a_model_with_nan_is_refused():
    model = tiny.llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        importance.leave_one_out(model, tiny.tokens())
