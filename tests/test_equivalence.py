"""Folds and rotations are kept where the model at hand computes the same with them, and else refused, undone."""

import copy

import pytest
import torch
import transformers

from lib.models import blocks, capture, equivalence
from lib.quantizers import awq, rotation
from tests import tiny

SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "bos_token_id": 0}
KINDS = {  # what lies between layers, and whether values and stream can be rotated
    "clipped": ("Olmo", {"clip_qkv": 0.5}, False, True),
    "clipped where these texts don't reach": ("Olmo", {"clip_qkv": 40.0}, False, True),
    "norms without weights": ("Olmo", {}, True, True),
    "norms behind": ("Olmo2", {}, True, False),
    "residual factors": ("Granite", {"residual_multiplier": 0.4, "embedding_multiplier": 3.0}, True, True),
    "parallel": ("Cohere", {"logit_scale": 0.3, "use_qk_norm": True}, True, True),
    "scaled embedding": ("Gemma", {"head_dim": 16}, True, True),
    "four norms, caps": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16}, True, False),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, True, True),
    "positions without rotation": ("SmolLM3", {"no_rope_layers": [1, 0]}, True, True),
}


def build(name):
    family, settings, *_ = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SIZES, **settings)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.data.add_(0.1 * torch.randn_like(weight))
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.tokens(2, 24), use_cache=False).logits


def snapshot(model):
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    forwards = [module for module in model.modules() if "forward" in module.__dict__]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return tensors, model.config.to_dict(), len(hooks), len(forwards)


def same(one, other):
    return one[1:] == other[1:] and all(torch.equal(one[0][name], tensor) for name, tensor in other[0].items())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("turned", ["values", "residual", "both"])
def test_a_rotation_leaves_the_function_or_the_model_as_it_was(name, turned):
    model, (*_, values, residual) = build(name), KINDS[name]
    before, expected = snapshot(model), logits(model)
    possible = {"values": values, "residual": residual, "both": values and residual}[turned]
    options = {"values": {"residual": False}, "residual": {"values": False}, "both": {}}[turned]
    if possible:
        rotation.rotate_(model, **options)
        assert (logits(model) - expected).norm() < 1e-5 * expected.norm()
        assert not same(snapshot(model), before)
    else:
        with pytest.raises(ValueError, match=r"ForCausalLM has .*; choose rotate_\((values|residual)=False\)"):
            rotation.rotate_(model, **options)
        assert same(snapshot(model), before)


@pytest.mark.parametrize("clip", [0.5, 40.0])
def test_awq_folds_nothing_through_values_that_are_clipped(clip):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.OlmoForCausalLM(transformers.OlmoConfig(**SIZES, clip_qkv=clip)).eval()
    expected = logits(model)
    found = awq.scale_(model, tiny.tokens(4, 24), bits=3, group_size=16)
    sources = {each.layers[0].rpartition(".")[2]: each.source for each in found}
    assert sources["o_proj"] is None and sources["down_proj"].endswith("up_proj")
    assert (logits(model) - expected).norm() < 1e-5 * expected.norm()
    plain = transformers.OlmoForCausalLM(transformers.OlmoConfig(**SIZES)).eval()
    found = awq.scale_(plain, tiny.tokens(4, 24), bits=3, group_size=16)
    assert any(each.source and each.source.endswith("v_proj") for each in found)


def test_awq_scales_that_would_change_a_block_are_refused_before_anything_is_changed(monkeypatch):
    model = tiny.llama()
    before = snapshot(model)
    fold_ = awq.fold_

    def wrong(block, fold, scale):  # a fold that forgets one of the layers which read the source
        fold_(block, fold, scale)
        if fold.source == "input_layernorm":
            block.self_attn.k_proj.weight.mul_(0.5)

    monkeypatch.setattr(awq, "fold_", wrong)
    with pytest.raises(ValueError, match=r"model\.layers\.0 of LlamaForCausalLM computes something else .*nothing was"):
        awq.scale_(model, tiny.tokens(4, 24), bits=3, group_size=16)
    assert same(snapshot(model), before)


def test_the_first_block_that_differs_is_named_with_its_size():
    model = tiny.llama()
    captured = capture.capture(model, tiny.tokens(1, 12))
    third = blocks.blocks(model)[2]

    def change_(block, trial):
        if block is third:
            trial.mlp.down_proj.weight.mul_(1.1)

    index, off = equivalence.first_difference(model, captured, change_)
    assert index == 2 and 0.001 < off < 0.1
    assert equivalence.first_difference(model, captured, lambda *_: None) is None
    layer = third.mlp.down_proj

    def rounded(block, trial):  # as large as any value at hand, and reached by enlarged ones alone
        trial.mlp.down_proj.register_forward_hook(lambda _, __, output: output.clamp(-1e3, 1e3))

    assert equivalence.first_difference(model, captured, rounded) is None
    index, off = equivalence.first_difference(model, captured, rounded, enlarged={layer})
    assert index == 2 and off > 0.1
    assert same(snapshot(copy.deepcopy(model)), snapshot(tiny.llama()))
