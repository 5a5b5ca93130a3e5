"""Causal attention in bfloat16 against float64, and what passes it by."""

import contextlib

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from lib.models import attention
from lib.trainers import loop, next_token


def parts(length=200, heads=4, shared=2, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, length, 32), (2, heads // shared, length, 32), (2, heads // shared, length, 32)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def exact(query, key, value, scale=None):
    """The formula, written out in float64."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_outputs_and_gradients_equal_float64(length, scale):
    given = parts(length)
    doubles = [each.detach().double().requires_grad_() for each in given]
    upstream = torch.randn(2, 4, length, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    found, expected = attention.causal_attention(*given, scale), exact(*doubles, scale)
    gradients = torch.autograd.grad(found, given, upstream)
    wanted = torch.autograd.grad(expected, doubles, upstream.double())
    for ours, theirs in zip((found, *gradients), (expected, *wanted)):
        error = (ours.double() - theirs).norm()
        assert ours.dtype == torch.bfloat16 and error <= 0.02 * theirs.norm() + 1e-9


def calls(monkeypatch):
    seen, own = [], attention.causal_attention
    monkeypatch.setattr(attention, "causal_attention", lambda *args, **options: seen.append(1) or own(*args, **options))
    return seen


def test_it_takes_the_place_of_torchs_only_where_it_can(monkeypatch):
    seen, given = calls(monkeypatch), parts(64)
    options = {"is_causal": True, "enable_gqa": True}
    with attention.fast():
        replaced = functional.scaled_dot_product_attention(*given, **options)
    assert seen and torch.allclose(replaced, functional.scaled_dot_product_attention(*given, **options), atol=0.03)
    seen.clear()
    mask = torch.zeros(64, 64, dtype=torch.bfloat16)
    with attention.fast():
        functional.scaled_dot_product_attention(*given, attn_mask=mask, enable_gqa=True)
        functional.scaled_dot_product_attention(*given, enable_gqa=True)
        functional.scaled_dot_product_attention(*parts(64, dtype=torch.float32), **options)
        functional.scaled_dot_product_attention(given[0][:, :, :1], *given[1:], **options)
        functional.scaled_dot_product_attention(*parts(attention.LONGEST + 1, heads=2), **options)
        with torch.no_grad():
            functional.scaled_dot_product_attention(*given, **options)
    functional.scaled_dot_product_attention(*given, **options)
    assert not seen


def test_large_scores_stay_finite():
    query, key, value = (each.detach().mul(100).requires_grad_() for each in parts(130))
    found = attention.causal_attention(query, key, value)
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(found.sum(), (query, key, value)))


@pytest.mark.parametrize("again", [False, True])
def test_trainings_take_it_and_learn_the_same(monkeypatch, again):
    def losses():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).bfloat16()
        if again:
            model.gradient_checkpointing_enable()
        tokens = torch.randint(64, (8, 24), generator=torch.Generator().manual_seed(1))
        return loop.train_(model, tokens, next_token.loss, steps=4, batch=2, learning_rate=1e-2).losses

    seen = calls(monkeypatch)
    ours = losses()
    assert len(seen) >= 2 * 4 * 2  # blocks, steps and passes
    monkeypatch.setattr(attention, "fast", contextlib.nullcontext)
    seen.clear()
    assert losses() == pytest.approx(ours, abs=0.02) and not seen
