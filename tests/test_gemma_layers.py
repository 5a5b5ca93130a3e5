"""Gemma 3's alternating attention: what may be dropped, and that the list of kinds keeps in step with the blocks."""

import json

import pytest
import torch

from lib.export import compressed_tensors, plain
from lib.models import blocks
from lib.pruners import drop
from lib.quantizers import gptq, rtn
from tests import tiny

PATTERN = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def gemma3():
    """A tiny Gemma 3: every third block sees everything, the others 8 tokens; a rotary base for each kind."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"num_hidden_layers": 6, "layer_types": list(PATTERN), "sliding_window": 8, "head_dim": 16}
    config = Gemma3TextConfig(**{**tiny._SIZES, **sizes, "query_pre_attn_scalar": 16})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config).eval()
    model.tokenizer = tiny.tokenizer()
    return model


def logits(model):
    with torch.no_grad():
        return model(tiny.tokens(2, 40)).logits


def by_hand(model, kept):
    """Logits of the blocks `kept`, each with the attention it had, called one after the other."""
    whole = gemma3()
    whole.load_state_dict(model.state_dict())
    decoder = whole.model
    originals = list(decoder.layers)
    for index, block in enumerate(originals):
        if index not in kept:
            block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    return logits(whole)


@pytest.mark.parametrize("dropped", [[0], [2], [5], [1, 2], [0, 1, 3, 4], [2, 5], [0, 2, 3]])
def test_dropping_keeps_kinds_in_step(tmp_path, dropped):
    model = gemma3()
    kept = [index for index in range(6) if index not in dropped]
    expected = by_hand(model, kept)
    drop.drop_blocks_(model, dropped)
    assert model.config.layer_types == [PATTERN[index] for index in kept]
    assert [block.self_attn.is_sliding for block in blocks.blocks(model)] == [
        PATTERN[index] == "sliding_attention" for index in kept
    ]
    torch.testing.assert_close(logits(model), expected)
    from transformers import AutoModelForCausalLM

    plain.save(model, model.tokenizer, tmp_path / "pruned")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(again), logits(model))
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["layer_types"] == model.config.layer_types


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_quantized_saved_and_read_by_plain_transformers(tmp_path, method, bits):
    from transformers import AutoModelForCausalLM

    model = gemma3()
    if method == "gptq":
        gptq.quantize_(model, tiny.tokens(4, 40), bits=bits, group_size=16)
    else:
        rtn.quantize_(model, bits=bits, group_size=16)
    drop.drop_blocks_(model, [2])
    compressed_tensors.save(model, model.tokenizer, tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
