"""models.blocks finds the parts of every family by their meaning: checked against each family's own attribute names."""

import pytest
import torch
import transformers
from torch import nn

from lib.models import blocks
from lib.quantizers import rtn
from tests import tiny


def _build(family, **config):
    return getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**config)).eval()


def _small(family, **more):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return _build(family, **{**sizes, **more})


FAMILIES = {
    "llama": (tiny.llama, "model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "qwen2": (tiny.qwen2, "model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "qwen3": (tiny.qwen3, "model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "mistral": (tiny.mistral, "model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "gemma2": (tiny.gemma2, "model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "phi": (tiny.phi, "model.layers", "model.embed_tokens", "model.final_layernorm", "lm_head"),
    "phi3": (
        lambda: _small("Phi3", intermediate_size=64, pad_token_id=0),
        *("model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    ),
    "gemma": (
        lambda: _small("Gemma", intermediate_size=64, head_dim=16, num_key_value_heads=1),
        *("model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    ),
    "opt": (
        lambda: _small("OPT", ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
        *("model.decoder.layers", "model.decoder.embed_tokens", "model.decoder.final_layer_norm", "lm_head"),
    ),
    "gpt_neox": (
        lambda: _small("GPTNeoX", intermediate_size=64),
        *("gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head"),
    ),
    "falcon": (
        lambda: _small("Falcon"),
        *("transformer.h", "transformer.word_embeddings", "transformer.ln_f", "lm_head"),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_parts_of_each_family(family):
    build, path, embedding, norm, head = FAMILIES[family]
    model = build()
    assert blocks.path_of_blocks(model) == path
    assert blocks.blocks(model) is model.get_submodule(path)
    assert blocks.embeddings(model) is model.get_submodule(embedding)
    assert blocks.final_norm(model) is model.get_submodule(norm)
    assert blocks.head(model) is model.get_submodule(head)
    hidden = blocks.decoder(model)(input_ids=torch.arange(8)[None]).last_hidden_state
    assert hidden.shape == (1, 8, blocks.head(model).in_features)


def test_linears_of_a_block_in_module_order():
    found = blocks.linears(blocks.blocks(tiny.llama())[0])
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    assert list(found) == [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert all(isinstance(module, nn.Linear) for module in found.values())


def test_linears_include_quantized_layers():
    model = tiny.llama()
    names = list(blocks.linears(blocks.blocks(model)[0]))
    rtn.quantize_(model, bits=4, group_size=32)
    found = blocks.linears(blocks.blocks(model)[0])
    assert list(found) == names
    assert all(blocks.is_quantized(module) and not isinstance(module, nn.Linear) for module in found.values())
    assert not blocks.is_quantized(blocks.final_norm(model))


def test_a_list_of_the_same_length_inside_a_block_does_not_confuse():
    model = tiny.llama()
    for block in blocks.blocks(model):
        block.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
    assert blocks.path_of_blocks(model) == "model.layers"


def test_gpt2_is_refused_by_name():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has Conv1D layers.*supported are Llama"):
        blocks.blocks(model)


def test_a_model_without_its_list_of_blocks_is_refused():
    model = tiny.llama()
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="LlamaForCausalLM has 0 module lists with 7 entries"):
        blocks.path_of_blocks(model)


def test_two_lists_of_the_right_length_are_refused():
    model = tiny.llama()
    model.others = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
    with pytest.raises(ValueError, match="2 module lists"):
        blocks.path_of_blocks(model)


def test_a_model_without_head_is_refused():
    with pytest.raises(ValueError, match="no output head; load it with AutoModelForCausalLM"):
        blocks.head(tiny.llama().model)


def test_a_model_without_final_norm_is_refused():
    post_norm = _small("OPT", ffn_dim=64, word_embed_proj_dim=32, do_layer_norm_before=False)
    with pytest.raises(ValueError, match="0 norms beside its blocks"):
        blocks.final_norm(post_norm)
