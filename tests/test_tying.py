"""Embedding and head as one matrix or as two: a saved folder holds what was measured, whatever a config says."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lib import checkpoints, runtime
from lib.export import compressed_tensors, plain, size
from lib.metrics import count
from lib.models import blocks
from lib.pruners import depth
from lib.quantized import replace
from lib.quantizers import embedding, gptq, rtn
from lib.sources import models
from tests import tiny

IDS = tiny.tokens(2, 24)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def neox(**overrides):
    return tiny._build("GPTNeoX", 0, {"rotary_pct": 0.25, **overrides})


FAMILIES = {
    **{name: getattr(tiny, name) for name in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi")},
    "neox": neox,
}


def says_tied(folder, family="llama", said=True):
    """A folder whose config says `said` beside a model that isn't tied: with a head (and its bias) of its own."""
    model = FAMILIES[family](tie_word_embeddings=False)
    tiny.save(folder, model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": said}))
    return model


def check_everywhere(folder, expected, *, tied, plain_too=True):
    """What lies in `folder` is read here and by plain transformers as what was measured, and its config says so."""
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is tied
    again, _ = models.load(str(folder))
    assert torch.equal(logits(again), expected) and blocks.tied(again) is tied
    if plain_too:
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto")), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_its_own_survives_a_config_that_says_tied(tmp_path, family):
    original = says_tied(tmp_path / "it", family)
    model, tokenizer = models.load(str(tmp_path / "it"))
    assert torch.equal(logits(model), logits(original)) and not blocks.tied(model)
    plain.save(model, tokenizer, tmp_path / "plain")
    check_everywhere(tmp_path / "plain", logits(original), tied=False)
    depth.drop_blocks_(model, [1])
    plain.save(model, tokenizer, tmp_path / "pruned")
    check_everywhere(tmp_path / "pruned", logits(model), tied=False)
    rtn.quantize_(model, bits=4, group_size=32)
    predicted = size.predict(model)
    compressed_tensors.save(model, tokenizer, tmp_path / "packed")
    assert predicted == count.artifact_bytes(tmp_path / "packed")
    check_everywhere(tmp_path / "packed", logits(model), tied=False)
    gptq.quantize_(model := models.load(str(tmp_path / "it"))[0], IDS, bits=4, group_size=32)
    embedding.quantize_(model, IDS, bits=4, group_size=32)
    model.save_pretrained(tmp_path / "all")
    tokenizer.save_pretrained(tmp_path / "all")
    check_everywhere(tmp_path / "all", logits(model), tied=False)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("parts", [("embedding",), ("head",), ("embedding", "head")])
def test_half_of_the_ends_quantized_or_both_at_other_bits(tmp_path, said, parts):
    model = tiny.llama(tie_word_embeddings=said)
    made = {"embedding": rtn.rtn(blocks.embeddings(model).weight, bits=3, group_size=32)}
    made["head"] = rtn.rtn(blocks.head(model).weight, bits=5, group_size=32)
    replace.place_(
        model, made["embedding"] if "embedding" in parts else None, made["head"] if "head" in parts else None
    )
    rtn.quantize_(model, bits=5, group_size=32)
    model.config.tie_word_embeddings = said  # as somebody else's tool may leave it
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    check_everywhere(tmp_path / "it", logits(model), tied=False, plain_too=parts == ("head",))


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_one_matrix_may_be_stored_under_either_name(tmp_path, kept):
    from safetensors.torch import load_file, save_file

    model = tiny.llama()
    rtn.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    (tmp_path / "it/manifest.json").unlink()
    tensors = load_file(tmp_path / "it/model.safetensors")
    tensors[kept] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "it/model.safetensors", {"format": "pt"})
    check_everywhere(tmp_path / "it", logits(model), tied=True)


def test_two_equal_matrices_under_a_config_that_says_tied_are_one(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny.llama()
    rtn.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    (tmp_path / "it/manifest.json").unlink()
    tensors = load_file(tmp_path / "it/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "it/model.safetensors", {"format": "pt"})
    check_everywhere(tmp_path / "it", logits(model), tied=True)


def test_a_head_that_an_adapter_gave_is_saved(tmp_path):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "modules_to_save" in name or "lora_B" in name:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    model = wrapped.merge_and_unload()
    model.config.tie_word_embeddings = True  # as older releases of peft leave it
    plain.save(model, tiny.tokenizer(), tmp_path / "plain")
    check_everywhere(tmp_path / "plain", logits(model), tied=False)
    rtn.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "packed")
    check_everywhere(tmp_path / "packed", logits(model), tied=False)


def test_weights_that_a_user_tied_are_saved_as_one(tmp_path):
    model = tiny.llama(tie_word_embeddings=False)
    model.lm_head.weight = model.model.embed_tokens.weight
    plain.save(model, tiny.tokenizer(), tmp_path / "plain")
    check_everywhere(tmp_path / "plain", logits(model), tied=True)
    rtn.quantize_(model, bits=4, group_size=32)
    embedding.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "packed")
    check_everywhere(tmp_path / "packed", logits(model), tied=True)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_packed_engine_computes_with_the_head_that_is_there(tmp_path, family):
    original = says_tied(tmp_path / "it", family)
    model, tokenizer = models.load(str(tmp_path / "it"))
    rtn.quantize_(model, bits=8, group_size=32)
    compressed_tensors.save(model, tokenizer, tmp_path / "packed")
    for folder, expected in (("it", original), ("packed", model)):
        weights = runtime.load(tmp_path / folder, embedding_bits=None)
        found = runtime.Session(weights).extend(IDS[0])
        assert not weights.tied
        distance = (torch.as_tensor(found) - logits(expected)[0]).norm() / logits(expected)[0].norm()
        assert distance < 0.05  # sharing the embedding's matrix: 1.4


@pytest.mark.parametrize("quantized_ends", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_that_transformers_renames_come_back(tmp_path, tied, quantized_ends):
    from safetensors import safe_open

    model = neox(tie_word_embeddings=tied)
    if quantized_ends:
        embedding.quantize_(model, bits=4, group_size=16)
    rtn.quantize_(model, bits=4, group_size=16)
    compressed_tensors.save(model, model.tokenizer, tmp_path / "it")
    with safe_open(tmp_path / "it/model.safetensors", "pt") as file:
        assert any(key.startswith("embed_out.") for key in list(file.keys())) is not tied
    check_everywhere(tmp_path / "it", logits(model), tied=tied)
    again, _ = compressed_tensors.load(tmp_path / "it")
    compressed_tensors.save(again, model.tokenizer, tmp_path / "twice")
    assert checkpoints.fingerprint(tmp_path / "twice") == checkpoints.fingerprint(tmp_path / "it")


def test_experts_that_transformers_joins_come_back(tmp_path):
    config = transformers.MixtralConfig(**{**tiny._SIZES, "num_local_experts": 4})
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    rtn.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    check_everywhere(tmp_path / "it", logits(model), tied=True, plain_too=False)
