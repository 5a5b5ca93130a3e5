"""Block scores against brute force in float64: really dropping the block, transformers' own states and gradients."""

import copy
import itertools
import math

import pytest
import torch
import transformers
from torch import nn

from lib.metrics import divergence
from lib.models import capture
from lib.pruners import importance
from lib.pruners.drop import drop_blocks_
from lib.pruners.importance import angular_distance, passes
from tests import tiny

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma2"]
score = importance.score


def mean_nll(model, tokens):
    """The loss that transformers itself computes, which shifts the labels by one."""
    with torch.no_grad():
        return model(input_ids=tokens, labels=tokens).loss.item()


def states_of(model, tokens):
    """What enters each block and what leaves the last, in float64: transformers' own list is normed at its end."""
    states = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda _, args, kwargs: states.append(args[0].double()), with_kwargs=True)
    last = model.model.layers[-1].register_forward_hook(lambda _, args, out: states.append(out.double()))
    with torch.no_grad():
        model(tokens)
    last.remove()
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_leave_one_out_equals_dropping_each_block(family):
    model, tokens = getattr(tiny, family)(), tiny.tokens(5, 24)
    whole = mean_nll(model, tokens)
    dropped = [mean_nll(drop_blocks_(copy.deepcopy(model), [index]), tokens) - whole for index in range(4)]
    assert score("leave_one_out", model, tokens) == pytest.approx(dropped, abs=2e-5)
    assert max(dropped) - min(dropped) > 1e-3


def test_leave_one_out_with_blocks_that_see_different_masks():
    model, tokens = tiny.gemma2(sliding_window=8, num_hidden_layers=5), tiny.tokens(3, 40)
    whole = mean_nll(model, tokens)
    dropped = [mean_nll(drop_blocks_(copy.deepcopy(model), [index]), tokens) - whole for index in range(5)]
    assert score("leave_one_out", model, tokens) == pytest.approx(dropped, abs=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_divergence_equals_the_formula_over_the_whole_vocabulary(family):
    model, tokens = getattr(tiny, family)(), tiny.tokens(3, 20)

    def log_probabilities(other):
        with torch.no_grad():
            return other(tokens).logits[:, :-1].double().log_softmax(-1)

    p = log_probabilities(model)
    expected = []
    for index in range(4):
        q = log_probabilities(drop_blocks_(copy.deepcopy(model), [index]))
        expected.append((p.exp() * (p - q)).sum(-1).mean().item())
    assert score("divergence", model, tokens) == pytest.approx(expected, abs=1e-5)


def test_divergence_of_a_pruned_model_from_its_original():
    model, tokens = tiny.llama(), tiny.tokens(3, 20)
    reference = divergence.remember(model, tokens)
    pruned = drop_blocks_(copy.deepcopy(model), [1])
    both = drop_blocks_(copy.deepcopy(model), [1, 3])
    expected = divergence.measure(both, model, tokens)["kl_divergence"].value
    found = score("divergence", pruned, tokens, reference=reference)
    assert found[2] == pytest.approx(expected, abs=1e-5) != pytest.approx(score("divergence", pruned, tokens)[2])
    with pytest.raises(ValueError, match="remember the original on this text"):
        score("divergence", pruned, tiny.tokens(3, 20, seed=1), reference=reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_block_influence_equals_its_definition(family):
    model, tokens = getattr(tiny, family)(), tiny.tokens(3, 24)
    expected = []
    for before, after in itertools.pairwise(states_of(model, tokens)):
        cosines = [x @ y / (x.norm() * y.norm()) for x, y in zip(before.flatten(0, 1), after.flatten(0, 1))]
        expected.append(1 - torch.stack(cosines).mean().item())
    assert score("block_influence", model, tokens) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("span", [1, 2, 4])
def test_angular_distance_equals_its_definition(span):
    model, tokens = tiny.qwen3(), tiny.tokens(3, 24)
    states, expected = states_of(model, tokens), []
    for start in range(4 - span + 1):
        ends = zip(states[start][:, -1], states[start + span][:, -1])
        angles = [math.acos((x @ y / (x.norm() * y.norm())).item()) / math.pi for x, y in ends]
        expected.append(sum(angles) / len(angles))
    found = angular_distance.score(model, tokens, span=span)
    assert found[: len(expected)] == pytest.approx(expected, abs=1e-6)
    assert found[len(expected) :] == [math.inf] * (span - 1)


@pytest.mark.parametrize("span", [0, 5, True, 1.0])
def test_spans_that_do_not_fit_are_refused(span):
    with pytest.raises(ValueError, match=r"of a model with 4 blocks; choose a whole number from 1 to 4"):
        angular_distance.score(tiny.llama(), tiny.tokens(), span=span)


def test_a_block_that_does_nothing_scores_zero():
    model = tiny.llama()
    block = model.model.layers[2]
    for layer in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(layer.weight)
    for name in ("leave_one_out", "divergence"):
        assert score(name, model, tiny.tokens())[2] == pytest.approx(0, abs=1e-7)
    # the arccos of a cosine that differs from 1 by a rounding is the root of that rounding
    for name, error in (("block_influence", 1e-6), ("angular_distance", 1e-4)):
        found = score(name, model, tiny.tokens())
        assert found[2] == pytest.approx(0, abs=error) and min(found[:2] + found[3:]) > 1e-3


def test_the_blocks_before_the_missing_one_are_not_run_again():
    model, runs, tokens = tiny.llama(), [], tiny.tokens()
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    capture.capture(model, tokens)
    tried = list(runs)  # what finding out how the blocks are called takes, whatever the score
    runs.clear()
    score("leave_one_out", model, tokens)
    assert runs[: len(tried)] == tried and len(tried) <= 1
    assert runs[len(tried) :] == [1, 2, 3, 0, 2, 3, 1, 3, 2, 3]
    for name in ("block_influence", "angular_distance"):
        runs.clear()
        score(name, model, tokens)
        assert runs == [*tried, 0, 1, 2, 3]


@pytest.mark.parametrize("name", ["leave_one_out", "divergence", "block_influence", "angular_distance"])
def test_batches_of_windows_make_no_difference(name, monkeypatch):
    model, tokens = tiny.llama(), tiny.tokens(5, 24)
    whole = score(name, model, tokens)
    monkeypatch.setattr(passes, "BATCH", 2)
    assert score(name, model, tokens) == pytest.approx(whole, abs=1e-5)


def test_means_over_windows_come_with_an_error_and_equal_the_score_of_all():
    model, tokens = tiny.llama(num_hidden_layers=8), tiny.tokens(4, 24)
    for name in importance.SCORES:
        found, values = importance.measure(name, model, tokens), score(name, model, tokens)
        assert [block.value for block in found] == pytest.approx(values, abs=1e-6)
        assert all(block.n == 4 and block.stderr > 0 for block in found) == (name in importance.MEANS)
        assert all(block.unit == importance.UNITS[name] for block in found)


@pytest.mark.parametrize("name", importance.SCORES)
def test_the_model_is_left_as_it_was(name):
    model = tiny.llama(num_hidden_layers=7).train()
    before = copy.deepcopy(model.state_dict())
    assert len(score(name, model, tiny.tokens())) == 7
    assert model.training and all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(block) for block in model.model.layers) and torch.is_grad_enabled()


def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match=r"'leave_one' is unknown; .*leave_one_out, magnitude.*did you mean"):
        score("leave_one", tiny.llama(), tiny.tokens())


READING = [name for name in importance.SCORES if name not in ("magnitude", "random", "last")]


@pytest.mark.parametrize("name", READING)
def test_windows_of_one_token_are_refused(name):
    with pytest.raises(ValueError, match="windows of 1 token"):
        score(name, tiny.llama(num_hidden_layers=7), tiny.tokens(4, 1))


def test_models_that_predict_no_next_token_are_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=256, **sizes))
    both = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=256, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    )
    unmasked = transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=256, **sizes))
    for model in (encoder, both, unmasked, tiny.llama().model):
        with pytest.raises(ValueError, match=f"{type(model).__name__} is no decoder that predicts the next token"):
            score("leave_one_out", model, tiny.tokens())


@pytest.mark.parametrize("name", ["leave_one_out", "divergence"])
def test_a_model_with_nan_is_refused(name):
    model = tiny.llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite|computes its logits"):
        score(name, model, tiny.tokens())
    assert torch.is_grad_enabled()
