"""What a rotation cannot turn is refused before the work, and killed rotations resume."""

import copy

import pytest
import torch
from torch import nn

from lib.quantizers import gptq, rotation, rtn
from tests import tiny
from tests.test_calibrate import same
from tests.test_rotation import GRID, before_and_after, build, logits


def damaged(kind):
    """A tiny Llama with a part that no rotation passes."""
    model = tiny.llama()
    attention = model.model.layers[2].self_attn
    if kind == "scale":
        model.model.layers[1].scale = nn.Parameter(torch.ones(64))
    elif kind == "v_norm":
        attention.v_norm = copy.deepcopy(model.model.norm)
    elif kind == "gate":
        attention.gate_proj = nn.Linear(64, 64)
    else:
        rtn.quantize_(model, bits=4, group_size=32)
    return model


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (tiny.gemma2, {}, r"norm 0\.post_attention_layernorm, which is not .*; choose rotate_\(residual=False\)"),
        (lambda: build("opt"), {}, r"embed_positions\.weight, which is neither embedding, norm nor linear layer"),
        (lambda: build("gpt_neox"), {"values": False}, r"norm last with a bias, read by layers that have none"),
        (lambda: build("phi3"), {}, r"an attention in block 0 without plain query.*rotate_\(values=False\)"),
        (lambda: damaged("scale"), {}, r"model\.layers\.1\.scale, which is neither"),
        (lambda: damaged("v_norm"), {}, r"norm 2\.self_attn\.v_norm, which is not"),
        (lambda: damaged("v_norm"), {"residual": False}, r"an attention in block 2"),
        (lambda: damaged("gate"), {}, r"the layer 2\.self_attn\.gate_proj|an attention in block 2"),
        (lambda: damaged("quantized"), {}, r"a QuantLinear \(0\.self_attn\.q_proj\).*rotate the original"),
    ],
)
def test_what_cannot_be_turned_is_refused_and_left_alone(make, options, named):
    model = make()
    before, tied = copy.deepcopy(model.state_dict()), model.config.tie_word_embeddings
    with pytest.raises(ValueError, match=named):
        rotation.rotate_(model, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.tie_word_embeddings == tied
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("make", "turned", "named"),
    [
        (
            lambda: tiny.llama(hidden_size=63, head_dim=16, num_attention_heads=3, num_key_value_heads=3),
            {"residual": False},
            r"model\.embed_tokens of odd width, 63: .* flips signs and mixes nothing; .*use gptq\.quantize_",
        ),
        (
            lambda: tiny.phi(hidden_size=60, partial_rotary_factor=0.4),
            {"values": False},
            r"heads of an odd size, 15 \(in block 0\): .* flips signs .*choose rotate_\(values=False\)",
        ),
    ],
)
def test_odd_sizes_in_which_nothing_would_turn_are_refused_before_the_work(make, turned, named, tmp_path):
    model = make()
    before, expected = copy.deepcopy(model.state_dict()), logits(model)
    with pytest.raises(ValueError, match=named):
        rotation.rotate_(model)
    with pytest.raises(ValueError, match=named):
        rotation.quantize_(model, tiny.tokens(), bits=3, group_size=-1, state=tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (logits(rotation.rotate_(model, **turned)) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
def test_the_remedies_that_refusals_name_work(family):
    options = {"phi3": {"values": False}, "gpt_neox": {"residual": False, "values": False}}[family]
    model, expected, _ = before_and_after(family, **options)
    assert (logits(model) - expected).abs().max() < 1e-4
    gemma = tiny.gemma2()
    expected = logits(gemma)
    assert (logits(rotation.rotate_(gemma, residual=False)) - expected).abs().max() < 1e-4


def test_memory_is_checked_before_the_work(monkeypatch):
    model = tiny.llama()
    monkeypatch.setattr(rotation.psutil, "virtual_memory", lambda: type("Free", (), {"available": 10**5}))
    with pytest.raises(MemoryError, match=r"rotating LlamaForCausalLM needs about .* GB are free; free some"):
        rotation.rotate_(model)
    assert model.config.tie_word_embeddings


def test_quantizing_is_rotating_and_then_gptq():
    found, by_hand = tiny.llama(), tiny.llama()
    done = rotation.quantize_(found, tiny.tokens(), **GRID, seed=2)
    assert same(done, gptq.quantize_(rotation.rotate_(by_hand, seed=2), tiny.tokens(), **GRID))
    assert torch.equal(logits(found), logits(by_hand))
    assert same(done, rotation.quantize_(tiny.llama(), tiny.tokens(), **GRID, seed=2))
    assert not same(done, rotation.quantize_(tiny.llama(), tiny.tokens(), **GRID, seed=3))


def test_a_killed_job_resumes_in_the_same_bytes_and_another_is_refused_before_the_work(tmp_path):
    whole = rotation.quantize_(tiny.llama(), tiny.tokens(), **GRID)
    rotation.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
    for file in sorted(tmp_path.glob("block-*"))[1:]:
        file.unlink()
    assert same(whole, rotation.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path))
    for change, named in [({"seed": 1}, "seed=0 there, 1 here"), ({"bits": 4}, "bits=3 there, 4 here")]:
        model = tiny.llama()
        with pytest.raises(ValueError, match=named):
            rotation.quantize_(model, tiny.tokens(), **GRID | change, state=tmp_path)
        assert model.config.tie_word_embeddings and torch.equal(logits(model), logits(tiny.llama()))
    with pytest.raises(ValueError, match="holds another job"):
        gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)


def test_arguments_are_checked_before_the_rotation():
    model = tiny.llama()
    with pytest.raises(ValueError, match="group_size=128 does not divide 64 columns"):
        rotation.quantize_(model, tiny.tokens(), bits=4, group_size=128)
    assert model.config.tie_word_embeddings
