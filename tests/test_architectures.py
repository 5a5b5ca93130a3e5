"""One suite for every architecture of the table: what a decoder must do, whatever its blocks hold."""

import copy
import functools
import json
import subprocess
import sys

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaAttention

from lib import architectures, benchmark, files, runtime
from lib.decoding import generate
from lib.decoding.lookup import Lookup
from lib.decoding.sessions import ModelSession
from lib.evaluation.local import Local
from lib.metrics import count, perplexity
from lib.models import blocks, pick
from lib.pruners import depth, heal
from lib.sources import models
from lib.tasks.task import Likelihood
from tests import tiny

NAMES = list(architectures.ARCHITECTURES)
VOCABULARY, HIDDEN, INNER, BLOCKS, HEADS, KEYS = 256, 64, 128, 2, 4, 2
HEAD = HIDDEN // HEADS
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def made(name, seed=0, **changes):
    return tiny.architecture(name, seed=seed, **SIZES | changes)


@functools.cache
def model_of(name):
    """One model of each architecture, which no test changes; its head is the embedding where `tied` says so."""
    torch.manual_seed(0)
    return made(name, tie_word_embeddings=name not in ("headwise", "plain"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return model_of(name)


def close(found, expected, rtol=1e-4, atol=2e-5):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@torch.no_grad()
def test_no_token_sees_a_later_one(model):
    ids = tiny.tokens(1, 24)
    other = ids.clone()
    other[0, 15] += 1 - 2 * (other[0, 15] == 255).long()
    first, second = model(ids).logits, model(other).logits
    close(second[:, :15], first[:, :15])
    assert ((second - first)[0, 15:].abs().amax(-1) > 1e-4).all()


@torch.no_grad()
def test_cached_equals_uncached(model):
    ids, cache, parts = tiny.tokens(2, 20), None, []
    for part in ids.split([7, 1, 1, 11], dim=1):
        found = model(part, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        parts.append(found.logits)
    close(torch.cat(parts, dim=1), model(ids, use_cache=False).logits)
    mask = torch.ones_like(ids)
    grown = model.generate(ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for _ in range(6):  # the end token, 0, can't come within so many
        ids = torch.cat([ids, model(ids).logits[:, -1:, 1:].argmax(-1) + 1], dim=1)
    assert torch.equal(grown, ids)


@torch.no_grad()
def test_a_left_padded_row_equals_the_row_alone(model):
    ids, mask = tiny.tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    ids[0, :5], mask[0, :5] = 0, 0
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    found = model(ids, attention_mask=mask, position_ids=places).logits
    close(found[0, 5:], model(ids[:1, 5:]).logits[0])
    close(found[1], model(ids[1:]).logits[0])


MORE = {  # weights of one block beside Llama's, by hand; queries by an MLP have two norms more, and no other weights
    "headwise": HEADS * HEAD**2,
    "head_gate": HIDDEN * HEADS,
    "element_gate": HIDDEN * HIDDEN,
    "talking_heads": 2 * HEADS**2,
    "nonlinear_query": 2 * HIDDEN,
    "wider": 3 * HIDDEN * 5,  # 4 x 16² weights are 5.3 units of 3 x 64
}


def test_weights_and_operations_are_those_of_the_formula(name, model):
    more = MORE.get(name, MORE["headwise"] if name.startswith("headwise") else 0)
    number, context = BLOCKS + (name == "deeper"), 100
    layers = HIDDEN * (HIDDEN + 2 * KEYS * HEAD) + HIDDEN**2 + 3 * HIDDEN * INNER
    ends = VOCABULARY * HIDDEN * (1 if model.config.tie_word_embeddings else 2)
    weights = ends + number * (layers + more + 2 * HIDDEN) + HIDDEN
    assert count.parameters(model) == weights == sum(each.numel() for each in model.parameters())
    products = layers + (more if name not in ("talking_heads", "nonlinear_query") else 0)
    products += 2 * HIDDEN * context + (2 * HEADS**2 * context if name == "talking_heads" else 0)
    assert count.flops_per_token(model, context) == 2 * (VOCABULARY * HIDDEN + number * products)


def test_gradients_reach_every_weight(name):
    model = made(name).train()
    ids = tiny.tokens(2, 16)
    model(ids, labels=ids).loss.backward()
    assert [each for each, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.usefixtures("warm")
def test_saved_models_load_in_a_process_that_knows_only_the_package(tmp_path):
    ids, expected = tiny.tokens(1, 16), {}
    for name in NAMES:
        tiny.save(tmp_path / name, model_of(name))
        with torch.no_grad():
            expected[name] = model_of(name)(ids).logits
            loaded, _ = models.load(str(tmp_path / name))
            assert torch.equal(loaded(ids).logits, expected[name]), name
            assert blocks.tied(loaded) == (name not in ("headwise", "plain"))
    torch.save(expected, tmp_path / "expected.pt")
    script = """
import sys, torch, lib.architectures
from transformers import AutoModelForCausalLM
expected = torch.load(sys.argv[1] + "/expected.pt", weights_only=True)
for name, logits in expected.items():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/" + name, trust_remote_code=False)
    with torch.no_grad():
        print(name, type(model).__name__, torch.equal(model(torch.tensor(eval(sys.argv[2]))).logits, logits))
"""
    run = [sys.executable, "-c", script, str(tmp_path), str(ids.tolist())]
    out = subprocess.run(run, cwd=files.ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [f"{name} {type(model_of(name)).__name__} True" for name in NAMES]
    config = json.loads((tmp_path / "headwise_relu" / "config.json").read_text())
    assert config["head_activation"] == "relu" and config["architectures"] == ["HeadwiseForCausalLM"]
    assert "auto_map" not in config


def test_a_row_of_the_benchmark_at_four_bits(name, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    model, ids = made(name), tiny.tokens(4, 24)
    size = -1 if name == "wider" else 16
    settings = {"method": "gptq", "bits": 4, "group_size": size, "blocks": 0}
    whole = {path for path, layer in blocks.linears(model).items() if layer is not blocks.head(model)}
    before = perplexity.measure(model, ids).value
    benchmark.compress_(model, ids, **settings)
    assert {path for path, layer in blocks.linears(model).items() if blocks.is_quantized(layer)} == whole
    folder = benchmark.save(model, model.tokenizer, model=name, text="packaged", calibration_windows=4, **settings)
    again, _ = models.load(str(folder))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    row = {**count.measure(again, folder), "perplexity": perplexity.measure(again, ids)}
    assert row["parameters"].value == count.parameters(made(name)) and 4 < row["bits_per_weight"].value < 33
    assert 0.5 < row["perplexity"].value / before < 2


@torch.no_grad()
def test_a_block_is_pruned(name, tmp_path):
    model, ids = made(name), tiny.tokens(1, 16)
    kept = blocks.blocks(model)[1]
    rotation = model.model.rotary_emb(torch.zeros(1), torch.arange(16)[None])
    mask = torch.full((16, 16), -torch.inf).triu(1)[None, None]
    hidden = kept(model.model.embed_tokens(ids), attention_mask=mask, position_embeddings=rotation)
    expected = model.lm_head(model.model.norm(hidden))
    depth.drop_blocks_(model, [0, *range(2, len(blocks.blocks(model)))])
    close(model(ids).logits, expected)
    again, _ = models.load(str(tiny.save(tmp_path / "pruned", model)))
    assert len(blocks.blocks(again)) == 1 and torch.equal(again(ids).logits, model(ids).logits)


def test_a_healed_model_drafts_and_answers_as_transformers_does(name, tmp_path):
    teacher, text = made(name, num_hidden_layers=3), tiny.tokens(4, 16)
    model = depth.drop_blocks_(copy.deepcopy(teacher), [1])
    for way in ("full", "distill_lora"):  # adapters are peft's
        before = model(text).logits.detach()
        heal.heal_(model, text, way=way, teacher=teacher, first=1, steps=1)
        assert not torch.equal(model(text).logits, before)
    model, _ = models.load(str(tiny.save(tmp_path / "healed", model)))
    prompt = text[0].repeat(2)  # so that looking up drafts something
    mask, most = torch.ones(1, 32, dtype=torch.long), {"max_new_tokens": 8, "do_sample": False}
    greedy = model.generate(prompt[None], attention_mask=mask, **most)[0, 32:]
    drafted = generate.generate(ModelSession(model), prompt, new_tokens=8, drafter=Lookup())
    assert drafted.token_ids == greedy.tolist()
    asked = [Likelihood("a context", more) for more in (" and its end", " or no end at all")]
    for found, request in zip(Local(model).loglikelihoods(asked), asked):
        ids = model.tokenizer(request.context + request.continuation, return_tensors="pt").input_ids
        count = len(request.continuation)
        logits = model(ids).logits[0, -count - 1 : -1].log_softmax(-1)
        assert found.logprob == pytest.approx(float(logits.gather(-1, ids[0, -count:, None]).sum()), rel=1e-4)


@pytest.mark.parametrize("kind", pick.KINDS)
def test_layers_are_found_by_what_they_do(name, kind):
    block = blocks.blocks(model_of(name))[1]
    found = pick.linear(model_of(name), kind, 1 / (len(blocks.blocks(model_of(name))) - 1))
    first = "query_in" if name == "nonlinear_query" else "q_proj"
    wanted = {"query": block.self_attn.get_submodule(first), "output": block.self_attn.o_proj}
    assert model_of(name).get_submodule(found) is wanted.get(kind, getattr(block.mlp, f"{kind}_proj", None))


@torch.no_grad()
def test_the_packed_engine_runs_it_or_refuses_it_by_name(name, capsys):
    model, ids = made(name).bfloat16(), tiny.tokens(1, 8)
    wanted = model(ids).logits[0].float()
    runtime.pack_(model, embedding_bits=None)
    if name in ("talking_heads", "nonlinear_query"):
        kind = type(model)
        said = f"{kind.__name__} has model type '{kind.config_class.model_type}'"
        assert said in capsys.readouterr().out  # its packed layers run, though not in one call a step
        close(model(ids).logits[0].float(), wanted, rtol=0.05, atol=0.1)
        with pytest.raises(ValueError, match=said):
            runtime.Session(model)
        return
    found = runtime.Session(model).extend(ids[0])
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_attention_of_the_base_is_llamas():
    llama = model_of("plain")
    own = architectures.base.Attention(llama.config, 0)
    assert isinstance(own, LlamaAttention)
    own.load_state_dict(llama.model.layers[0].self_attn.state_dict())
    hidden = torch.randn(2, 9, HIDDEN, generator=torch.Generator().manual_seed(0))
    rotation = llama.model.rotary_emb(hidden, torch.arange(9)[None])
    found, expected = (each(hidden, rotation, None)[0] for each in (own, llama.model.layers[0].self_attn))
    assert torch.equal(found, expected)
