"""Removing blocks: what remains equals a model that never had them, and saves, loads and generates."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lib import files
from lib.export import compressed_tensors, plain
from lib.models.blocks import blocks, config
from lib.pruners.drop import check, drop_blocks_, without
from tests import tiny
from tests.packed import quantize_

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma2"]
READ = """
import sys
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
tokens = load_file(sys.argv[1])["tokens"]
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    some = dict(input_ids=tokens[:1, :6], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    cached = model.generate(**some, use_cache=True)
    assert cached.equal(model.generate(**some, use_cache=False)), folder
    save_file({"logits": model(tokens).logits.detach(), "cached": cached}, folder + "/found.safetensors")
"""


def logits(model, tokens=None):
    with torch.no_grad():
        return model(tiny.tokens() if tokens is None else tokens).logits


def generate(model, cache):
    prompt = tiny.tokens(1, 6)
    mask = torch.ones_like(prompt)
    with torch.no_grad():
        return model.generate(
            prompt, attention_mask=mask, max_new_tokens=24, do_sample=False, use_cache=cache, eos_token_id=None
        )


def built_from(model, **changes):
    """A model of the same class, made from the changed config, with the weights of `model`."""
    settings = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(settings, name, value)
    made = type(model)(settings).eval()
    made.load_state_dict(model.state_dict())
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_remaining_model_is_what_its_config_describes(family):
    model = getattr(tiny, family)()
    kept = [list(blocks(model))[index] for index in (0, 3)]
    assert drop_blocks_(model, [2, 1]) is model
    assert list(blocks(model)) == kept and config(model).num_hidden_layers == 2
    assert [block.self_attn.layer_idx for block in kept] == [0, 1]
    assert torch.equal(logits(model), logits(built_from(model)))
    assert torch.equal(generate(model, True), generate(model, False))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("dropped, left", [([1], "ssf"), ([0, 2], "ff"), ([1, 3], "ss")])
def test_lists_with_an_entry_per_block_are_shortened(dropped, left):
    model = tiny.gemma2(sliding_window=8)
    whole = copy.deepcopy(model)
    drop_blocks_(model, dropped)
    assert "".join(kind[0] for kind in model.config.layer_types) == left
    # by hand: the same blocks in a row, each called with its own mask
    for index in sorted(dropped, reverse=True):
        whole.model.layers[index].forward = lambda states, *args, **kwargs: states
    tokens = tiny.tokens(2, 24)
    assert torch.equal(logits(model, tokens), logits(whole, tokens))
    assert torch.equal(generate(model, True), generate(model, False))


def test_what_the_decoder_derived_from_its_blocks_is_derived_anew():
    model = tiny.qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=3)
    assert model.model.has_sliding_layers
    drop_blocks_(model, [3])
    assert model.model.has_sliding_layers is False and model.config.layer_types == ["full_attention"] * 3
    assert torch.equal(generate(model, True), generate(model, False))


@pytest.mark.usefixtures("warm")
def test_a_fresh_process_with_plain_transformers_gets_equal_logits(tmp_path):
    tokens = tiny.tokens(2, 24)
    save_file({"tokens": tokens}, tmp_path / "tokens")
    pruned = {family: drop_blocks_(getattr(tiny, family)(), [1]) for family in ("llama", "gemma2", "phi")}
    folders = [plain.save(model, model.tokenizer, tmp_path / name) for name, model in pruned.items()]
    both = drop_blocks_(quantize_(tiny.qwen3(), dtype=torch.float32), [0, 2])
    pruned["quantized"] = both
    folders.append(compressed_tensors.save(both, both.tokenizer, tmp_path / "quantized"))
    subprocess.run([sys.executable, "-c", READ, tmp_path / "tokens", *folders], check=True, cwd=files.ROOT)
    for name, model in pruned.items():
        found = load_file(tmp_path / name / "found.safetensors")
        assert torch.equal(found["logits"], logits(model, tokens)), name
        assert torch.equal(
            found["cached"],
            model.generate(tokens[:1, :6], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0),
        ), name
        assert json.loads((tmp_path / name / "config.json").read_text())["num_hidden_layers"] == len(blocks(model))


def test_quantizing_before_or_after_dropping_is_the_same():
    first = drop_blocks_(quantize_(tiny.llama()), [1])
    second = quantize_(drop_blocks_(tiny.llama(), [1]))
    assert torch.equal(logits(first), logits(second))


@pytest.mark.parametrize("kind", ["OPT", "GPTNeoX", "Falcon", "Phi3", "Gemma", "SmolLM3"])
def test_other_families(kind):
    own = {"OPT": {"ffn_dim": 128, "word_embed_proj_dim": 64}, "GPTNeoX": {"tie_word_embeddings": False}}
    model = drop_blocks_(tiny._build(kind, 0, own.get(kind, {})), [0, 3])
    assert torch.equal(logits(model), logits(built_from(model)))
    assert torch.equal(generate(model, True), generate(model, False))


def test_blocks_of_different_kinds_are_dropped_where_the_pattern_allows_it():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 2}
    model = tiny._build("Qwen3Moe", 0, {**experts, "head_dim": 16})
    before = logits(model)
    with pytest.raises(ValueError, match=r"block 2 would become block 1.*mlp is a Qwen3MoeSparseMoeBlock, here a "):
        drop_blocks_(model, [1])
    assert torch.equal(logits(model), before) and model.config.num_hidden_layers == 4
    drop_blocks_(model, [0, 1])
    assert torch.equal(logits(model), logits(built_from(model)))


def test_blocks_with_other_settings_than_the_config_says_are_refused():
    model = tiny.llama()
    model.model.layers[2].self_attn.scaling = 1.0
    with pytest.raises(ValueError, match=r"self_attn\.scaling is 0.25, here 1.0"):
        drop_blocks_(model, [0])
    model = tiny.llama()
    model.model.layers[2].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no mlp\.extra"):
        drop_blocks_(model, [0])


@pytest.mark.parametrize(
    "indices, problem",
    [
        ([4], r"\[4\] are no blocks; the model has blocks 0 to 3"),
        ([-1], r"\[-1\] are no blocks"),
        ([True], "are no blocks"),
        ([1.0], "are no blocks"),
        ([1, 2, 1], r"\[1\] are repeated"),
        ([0, 1, 2, 3], "none would stay; .*at most 3 of them"),
        (range(5), "are no blocks"),
    ],
)
def test_wrong_indices_are_refused_and_change_nothing(indices, problem):
    model = tiny.llama()
    with pytest.raises(ValueError, match=problem):
        drop_blocks_(model, indices)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


def test_indices_may_be_empty_or_from_numpy():
    model = tiny.llama()
    before = logits(model)
    assert torch.equal(logits(drop_blocks_(model, [])), before)
    drop_blocks_(model, np.array([0, 2]))
    assert len(model.model.layers) == 2


def test_gpt2_is_refused_by_name():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=99))
    with pytest.raises(ValueError, match="Conv1D"):
        drop_blocks_(model, [0])


def test_an_encoder_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=99, **sizes))
    with pytest.raises(ValueError, match="BertForMaskedLM is no decoder that predicts the next token"):
        drop_blocks_(model, [0])


def test_a_list_of_rotary_choices_per_block_is_shortened():
    """Llama 4 and SmolLM3 keep, beside the kinds of attention, which blocks have rotary embeddings."""
    model = tiny._build("SmolLM3", 0, {"no_rope_layers": [1, 0, 1, 1]})
    kept = [block.self_attn.use_rope for block in model.model.layers]
    drop_blocks_(model, [0])
    assert model.config.no_rope_layers == [0, 1, 1]
    assert [block.self_attn.use_rope for block in model.model.layers] == kept[1:] == [0, 1, 1]
    assert torch.equal(logits(model), logits(built_from(model)))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_shares_all_weights_and_leaves_the_model_whole(family):
    model = getattr(tiny, family)()
    before, settings = logits(model), model.config.to_dict()
    shallow = without(model, [2, 0])
    assert torch.equal(logits(shallow), logits(drop_blocks_(copy.deepcopy(model), [2, 0])))
    assert torch.equal(logits(model), before) and model.config.to_dict() == settings
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1, 2, 3]
    whole = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in shallow.parameters()} < whole
    assert shallow.tokenizer is model.tokenizer


def test_without_shares_codes_too():
    model = quantize_(tiny.llama())
    logits(model)  # its layers keep dequantized matrices from now on
    shallow = without(model, [1])
    assert shallow.model.layers[1].mlp.up_proj.codes is model.model.layers[2].mlp.up_proj.codes
    assert shallow.model.layers[1].mlp.up_proj._dense is model.model.layers[2].mlp.up_proj._dense
    assert torch.equal(logits(shallow), logits(drop_blocks_(model, [1])))


def test_check_refuses_what_dropping_would_refuse_and_changes_nothing():
    model = tiny.llama()
    with pytest.raises(ValueError, match="none would stay"):
        check(model, range(4))
    check(model, [1])
    assert len(model.model.layers) == model.config.num_hidden_layers == 4
