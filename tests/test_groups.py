"""Config groups: which layers their targets match; mixed grids, codebooks and quantized embeddings there and back."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lib.export import compressed_tensors, groups, stored_tensors
from lib.metrics import count
from lib.models import blocks
from lib.quantized import replace
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, embedding
from tests import tiny
from tests.packed import matrix, quantize_

LAYERS = [
    f"model.layers.{index}.{layer}" for index in range(12) for layer in ("mlp.up_proj", "mlp.gate_proj", "attn.q")
]
NF2 = torch.tensor([-1.0, -0.25, 0.3, 1.0])


def logits(model):
    with torch.no_grad():
        return model(tiny.tokens()).logits


def same(first, second):
    before, after = stored_tensors.layers(first), stored_tensors.layers(second)
    pairs = [zip(before[name].quantized, after[name].quantized) for name in before]
    return before.keys() == after.keys() and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for pair in pairs for a, b in pair
    )


def coded_(model, books):
    """Put 2-bit codes with the codebook that `books` gives its name (None for an affine grid) into every layer."""
    for name, layer in calibrate.layers(model).items():
        book = books(name)
        found = matrix(layer.weight.detach(), 2, 32, symmetric=book is not None)._replace(codebook=book)
        model.set_submodule(name, QuantLinear(found, layer.bias))
    return model


@settings(deadline=None, max_examples=50)
@given(st.sets(st.sampled_from([*LAYERS, "lm_head", "model.embed_tokens"]), min_size=1))
def test_patterns_match_their_layers_and_no_others(names):
    from compressed_tensors.utils.match import match_name

    targets = groups.patterns(sorted(names))
    everything = [*LAYERS, "lm_head", "model.embed_tokens", "model.layers.1"]
    assert {name for name in everything if any(match_name(name, target) for target in targets)} == names


def test_layers_of_the_same_blocks_share_a_target():
    assert groups.patterns(["a.0.x", "a.2.x", "a.0.y.z", "a.2.y.z"]) == ["re:a.(0|2).(x|y.z)$"]
    assert groups.patterns(["a.0.x"]) == ["a.0.x"] and groups.patterns([]) == []
    assert groups.patterns(["head", "a.0.x", "a.1.x", "a.3.y"]) == ["head", "re:a.(0|1).x$", "re:a.3.y$"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_mixed_bits_with_embedding_and_head_come_back(tmp_path, family, tied):
    model = getattr(tiny, family)(tie_word_embeddings=tied)
    quantize_(model, lambda name: ((2, 3, 4, 8)[sum(name.encode()) % 4], 32, len(name) % 2 == 0))
    embedding.quantize_(model, tiny.tokens(), bits=6, group_size=16)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, _ = compressed_tensors.load(tmp_path / "it")
    assert same(model, again) and torch.equal(logits(model), logits(again))
    assert blocks.tied(again) == tied and again.config.tie_word_embeddings == tied
    stored = load_file(tmp_path / "it" / "model.safetensors")
    assert ("lm_head.weight_packed" in stored) != tied and not [key for key in stored if "type_of_rows" in key]
    assert count.parameters(again) == count.parameters(getattr(tiny, family)(tie_word_embeddings=tied))
    again.save_pretrained(tmp_path / "twice")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("it", "twice"))
    assert first == second


def test_an_embedding_or_a_head_alone_comes_back(tmp_path):
    for part in ("embedding", "head"):
        model = quantize_(tiny.llama(tie_word_embeddings=False))
        made = embedding.rounded(model, None, bits=8, group_size=64)
        replace.place_(model, **{"embedding": None, "head": None, part: made[part]})
        compressed_tensors.save(model, tiny.tokenizer(), tmp_path / part)
        again, _ = compressed_tensors.load(tmp_path / part)
        assert same(model, again) and torch.equal(logits(model), logits(again))


def test_a_head_that_went_its_own_way_is_stored_apart(tmp_path):
    model = quantize_(tiny.llama())
    embedding.quantize_(model, bits=4, group_size=32)
    head = blocks.head(model)
    head.scale = head.scale * 2
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, _ = compressed_tensors.load(tmp_path / "it")
    assert same(model, again) and not blocks.tied(again)
    head.scale, head.codes = head.scale / 2, head.codes.clone()  # equal again, though not the same tensors
    assert "lm_head.weight_packed" not in stored_tensors.packed_state(model)


def test_codebooks_come_back_and_plain_transformers_refuses_them(tmp_path):
    from transformers import AutoModelForCausalLM

    mixed = {"mlp.up_proj": NF2, "mlp.down_proj": NF2, "self_attn.o_proj": NF2**3}
    own = "model.layers.2.self_attn.v_proj"
    model = coded_(
        tiny.llama(), lambda name: NF2 * 2 if name == own else next((mixed[k] for k in mixed if name.endswith(k)), None)
    )
    embedding.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    stored = load_file(tmp_path / "it" / "model.safetensors")
    assert {key for key in stored if "codebook" in key} == {"codebooks.0", "codebooks.1", f"{own}.weight_codebook"}
    again, _ = compressed_tensors.load(tmp_path / "it")
    assert same(model, again) and torch.equal(logits(model), logits(again))
    with pytest.raises(ValueError, match="codebook"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "it")


def test_an_embedding_may_have_a_codebook(tmp_path):
    model = coded_(tiny.llama(), lambda name: NF2)
    found = embedding.rounded(model, None, bits=2, group_size=32, symmetric=True)["head"]._replace(codebook=NF2)
    replace.place_(model, found, found)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, _ = compressed_tensors.load(tmp_path / "it")
    assert same(model, again) and torch.equal(logits(model), logits(again)) and blocks.tied(again)


@pytest.mark.parametrize("damage", [None, torch.zeros(3), torch.zeros(4, dtype=torch.float64)])
def test_a_codebook_that_does_not_fit_is_refused(tmp_path, damage):
    folder = compressed_tensors.save(coded_(tiny.llama(), lambda name: NF2), tiny.tokenizer(), tmp_path / "it")
    (folder / "manifest.json").unlink()
    stored = load_file(folder / "model.safetensors") | {"codebooks.0": damage}
    stored = {key: tensor for key, tensor in stored.items() if tensor is not None}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the codebook of model\S+ is .*; 2 bits ask for float32 \[4\]"):
        compressed_tensors.load(folder)


def test_unquantized_layers_are_ignored_by_name():
    model = quantize_(tiny.llama())
    names = [f"model.layers.{index}.mlp.up_proj" for index in (1, 2)]
    for name in names:
        model.set_submodule(name, torch.nn.Linear(64, 128, bias=False, dtype=torch.bfloat16))
    config = stored_tensors.quantization_config(model)
    assert config["ignore"] == ["lm_head", "re:model.layers.(1|2).mlp.up_proj$"]
    assert json.dumps(config).count("layers") == 1
