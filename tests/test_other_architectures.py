"""Architectures outside the list: what is computed is plain transformers' answer, the rest is refused by name."""

import copy

import pytest
import torch
import transformers

from lib.decoding.generate import generate
from lib.decoding.lookup import Lookup
from lib.decoding.sessions import ModelSession
from lib.metrics import perplexity
from lib.models import blocks, capture
from lib.pruners import drop, heal
from lib.quantizers import awq, gptq, rtn
from lib.sources import models
from lib.trainers import next_token
from tests import families, tiny

IDS = tiny.tokens(3, 18)
SIZES = {"vocab_size": 256, "num_hidden_layers": 3, "hidden_size": 32}
MODELS = {
    "Rwkv": {"attention_hidden_size": 32},  # keeps a state that can't be cut back; answers three values a block
    "CpmAnt": {"num_attention_heads": 2, "dim_head": 16, "dim_ff": 48},
    "Bloom": {"n_head": 2},  # has no `num_hidden_layers` of its own; ALiBi for each text and head
}


def build(name):
    kind = getattr(transformers, f"{name}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(**SIZES, **MODELS[name])).eval()
        for weight in model.parameters():
            weight.data.add_(0.05 * torch.randn_like(weight))
    model.tokenizer = tiny.tokenizer()
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("name", MODELS)
def test_texts_and_losses_are_plain_transformers(name):
    model, prompt = build(name), IDS[0, :7].repeat(2)
    whole = prompt.tolist()
    for _ in range(6):
        whole.append(int(logits(model, torch.tensor([whole]))[0, -1].argmax()))
    for drafter in (None, Lookup()):
        assert generate(ModelSession(model), prompt, new_tokens=6, drafter=drafter).token_ids == whole[14:]
    nll = -logits(model)[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0]
    assert torch.allclose(perplexity.nll(model, IDS), nll, atol=1e-5)
    assert next_token.loss(model, {"input_ids": IDS}).item() == pytest.approx(nll.mean().item(), rel=1e-5)
    student = drop.drop_blocks_(copy.deepcopy(model), [2])
    p, q = logits(model)[:, :-1].log_softmax(-1), logits(student)[:, :-1].log_softmax(-1)
    history = heal.heal_(student, IDS, teacher=model, first=1, steps=1, batch=3)
    assert history.losses[0] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)


def test_blocks_that_are_told_their_text_s_tokens_are_refused():
    model, told = tiny.llama(), []
    table = torch.nn.Embedding(256, 64)
    model.model.embed_tokens.register_forward_hook(lambda _, args, states: told.append(table(args[0])))

    class Told(type(blocks.blocks(model)[0])):
        def forward(self, hidden, *args, **kwargs):
            return super().forward(hidden + told[-1], *args, **kwargs)

    for block in blocks.blocks(model):
        block.__class__ = Told
    with pytest.raises(ValueError, match=r"run by themselves .*they answer otherwise"):
        gptq.quantize_(model, IDS, bits=8, group_size=-1)
    assert capture.capture(tiny.llama(), IDS)


def test_a_router_that_is_a_linear_layer_and_more_stays_as_it_is():
    sizes = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    model = transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**SIZES, **sizes)).eval()
    original = logits(model)
    assert not any("router" in name for name in rtn.quantize_(model, bits=8, group_size=-1))
    assert families.distance(logits(model), original) < 0.1
    falcon = families.build("falcon")  # whose layers are of a class of their own that computes the same
    assert len(blocks.linears(blocks.blocks(falcon)[0])) == 4
    assert awq.quantize_(build("Rwkv"), IDS, bits=8, group_size=-1)  # which has no heads to share anything


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    torch.manual_seed(0)
    config = transformers.XLNetConfig(
        vocab_size=256, d_model=32, n_layer=1, n_head=2, d_inner=48, initializer_range=0.3
    )
    tiny.save(tmp_path / "m", transformers.XLNetLMHeadModel(config))
    with pytest.raises(ValueError, match="XLNetLMHeadModel, which sees the tokens that it should predict"):
        models.load(str(tmp_path / "m"))


def test_blocks_that_no_configuration_describes_are_not_left():
    kinds = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
    model = transformers.OlmoHybridForCausalLM(
        transformers.OlmoHybridConfig(**(SIZES | kinds), intermediate_size=48, num_attention_heads=2, pad_token_id=None)
    )
    with pytest.raises(ValueError, match=r"no configuration of OlmoHybridForCausalLM .* at least one attention layer"):
        drop.drop_blocks_(model, [1])
    assert model.config.num_hidden_layers == 2


def test_a_model_that_was_saved_is_pruned(tmp_path):
    model = families.build("apertus")
    model.save_pretrained(tmp_path)  # leaves the name of a type in the configuration
    assert len(blocks.blocks(drop.without(model, [1]))) == 3
