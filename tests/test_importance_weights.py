"""Scores of weights and baselines: against autograd in float64, and plain sums."""

import copy
import math

import pytest
import torch
from torch import nn

from lib.pruners import importance
from lib.pruners.importance import taylor_plus
from tests import tiny
from tests.packed import quantize_

score = importance.score


def mean_nll(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, labels=tokens).loss.item()


@pytest.mark.parametrize("family", ["llama", "phi", "gemma2"])
def test_taylor_equals_autograd_in_float64(family):
    model, tokens = getattr(tiny, family)(), tiny.tokens(3, 20)
    exact, expected = copy.deepcopy(model).double(), []
    out = exact(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    (-out.mean()).backward()
    for block in exact.model.layers:
        matrices = [part.weight for part in block.modules() if isinstance(part, nn.Linear)]
        expected.append(sum((weight * weight.grad).abs().sum().item() for weight in matrices))
    assert score("taylor", model, tokens) == pytest.approx(expected, rel=1e-4)


def test_taylor_estimates_what_removing_one_small_weight_does():
    """The first order in earnest: one tiny weight, zeroed, changes the loss by its gradient times itself."""
    model, tokens = tiny.llama().double(), tiny.tokens(2, 16)
    block = model.model.layers[2]
    for part in block.modules():
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.weight)
    block.self_attn.v_proj.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    block.self_attn.o_proj.weight.data[3, 5] = 1e-4
    whole = mean_nll(model, tokens)
    found = score("taylor", model, tokens)[2]
    block.self_attn.o_proj.weight.data[3, 5] = 0
    # v_proj's own gradient is proportional to the tiny weight too: it counts the same change a second time
    assert abs(mean_nll(model, tokens) - whole) > 1e-9
    assert found >= 0.99 * abs(mean_nll(model, tokens) - whole)


def test_taylor_does_not_need_trainable_weights_and_leaves_no_gradients():
    model, tokens = tiny.llama().requires_grad_(False), tiny.tokens()
    expected = score("taylor", tiny.llama(), tokens)
    assert score("taylor", model, tokens) == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_plus_protects_the_first_four_and_the_last_two():
    model, tokens = tiny.llama(num_hidden_layers=8), tiny.tokens()
    plain = score("taylor", model, tokens)
    assert score("taylor_plus", model, tokens) == [*[math.inf] * 4, *plain[4:6], *[math.inf] * 2]
    few = taylor_plus.score(tiny.llama(), tiny.tokens(), first=0, last=1)
    assert [math.isinf(value) for value in few] == [False, False, False, True]


@pytest.mark.parametrize("first, last", [(4, 2), (4, 0), (-1, 1)])
def test_protecting_all_blocks_is_refused(first, last):
    with pytest.raises(ValueError, match="of 4: at least one block must be left to remove"):
        taylor_plus.score(tiny.llama(), tiny.tokens(), first=first, last=last)


def test_magnitude_is_the_sum_of_absolute_weights():
    model = tiny.qwen2()
    expected = [
        sum(part.weight.double().abs().sum().item() for part in block.modules() if isinstance(part, nn.Linear))
        for block in model.model.layers
    ]
    assert score("magnitude", model, None) == pytest.approx(expected, rel=1e-9)


def test_baselines():
    model = tiny.llama()
    assert score("last", model, None) == [3, 2, 1, 0]
    before = torch.random.get_rng_state()
    draw = score("random", model, None)
    assert draw == score("random", model, None) != score("random", model, None, seed=1)
    assert len(set(draw)) == 4 and torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["taylor", "taylor_plus", "magnitude"])
def test_scores_of_weights_refuse_codes(name):
    model = quantize_(tiny.llama(num_hidden_layers=7))
    with pytest.raises(ValueError, match="holds quantized layers, whose weights are codes"):
        score(name, model, tiny.tokens())
    assert len(score("leave_one_out", model, tiny.tokens())) == 7
