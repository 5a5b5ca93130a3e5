"""Adapters beside a model, alone, or inside of one: refused by name, or taken as the argument says; against peft."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from lib import checkpoints, runtime, sources
from lib.export import compressed_tensors, plain
from lib.pruners import depth
from lib.quantizers import embedding, gptq, rtn
from lib.sources import models
from lib.trainers import adapters as training
from tests import tiny


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.tokens(1, 16), use_cache=False).logits


def wrapped(base, kind=None, **options):
    found = get_peft_model(tiny.llama(), kind or LoraConfig(r=4, target_modules=["q_proj"], **options))
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    found.peft_config["default"].base_model_name_or_path = str(base)
    return found


@pytest.fixture
def folders(tmp_path):
    """base: the plain model. adapter: an adapter alone. merged: a merged model beside the adapter that is in it."""
    base = tiny.save(tmp_path / "base")
    for name in ("adapter", "merged"):
        wrapped_model = wrapped(base)
        torch.manual_seed(0)
        with torch.no_grad():
            for key, weight in wrapped_model.named_parameters():
                if "lora_" in key:
                    weight.normal_(0, 0.3)
        wrapped_model.save_pretrained(tmp_path / name)
    tiny.save(tmp_path / "merged", wrapped_model.merge_and_unload())
    return tmp_path


def test_a_merged_model_beside_its_adapter_is_refused_or_taken_as_it_is(folders):
    once = logits(PeftModel.from_pretrained(tiny.llama(), folders / "adapter").merge_and_unload())
    for read in (models.load, runtime.load, compressed_tensors.load):
        with pytest.raises(ValueError, match=r"merged holds a model and an adapter for .*base'.*adapter='ignore'"):
            read(str(folders / "merged"))
    model, tokenizer = models.load(str(folders / "merged"), adapter="ignore")
    assert (logits(model) - once).abs().max() < 1e-5
    assert sources.used()[-1]["name"] == "merged without its adapter"
    gptq.quantize_(model, tiny.tokens(4, 32), bits=4, group_size=32)
    compressed_tensors.save(model, tokenizer, folders / "q")
    assert torch.equal(logits(models.load(str(folders / "q"))[0]), logits(model))


def test_an_adapter_beside_a_model_is_merged_when_asked_for(folders):
    twice = PeftModel.from_pretrained(models.load(str(folders / "merged"), adapter="ignore")[0], folders / "adapter")
    model, tokenizer = models.load(str(folders / "merged"), adapter="merge")
    assert torch.equal(logits(model), logits(twice.merge_and_unload()))
    noted = sources.used()[-1]
    assert noted["name"] == "merged with its adapter merged"
    assert noted["sha256"] != checkpoints.fingerprint(folders / "merged")
    plain.save(model, tokenizer, folders / "out")
    assert not (folders / "out/adapter_config.json").exists()
    assert torch.equal(logits(models.load(str(folders / "out"))[0]), logits(model))


def test_an_adapter_alone_is_refused_or_merged_into_its_base(folders):
    for choice in (None, "ignore"):
        with pytest.raises(ValueError, match=r"adapter is an adapter without its model, made for '.*base'.*merge"):
            models.load(str(folders / "adapter"), adapter=choice)
    with pytest.raises(ValueError, match="is an adapter without its model"):
        runtime.load(folders / "adapter")
    model, tokenizer = models.load(str(folders / "adapter"), adapter="merge")
    expected = PeftModel.from_pretrained(tiny.llama(), folders / "adapter").merge_and_unload()
    assert torch.equal(logits(model), logits(expected)) and tokenizer is model.tokenizer
    rtn.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tokenizer, folders / "q")
    assert torch.equal(logits(models.load(str(folders / "q"))[0]), logits(model))


def test_what_cannot_be_merged_is_refused(folders):
    with pytest.raises(ValueError, match=r"adapter='mrge' is nothing to do with one.*'merge'"):
        models.load(str(folders / "base"), adapter="mrge")
    with pytest.raises(ValueError, match="nothing to merge"):
        models.load(str(folders / "base"), adapter="merge")
    assert torch.equal(logits(models.load(str(folders / "base"), adapter="ignore")[0]), logits(tiny.llama()))
    prompt = wrapped(folders / "base", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    prompt.save_pretrained(folders / "prompt")
    with pytest.raises(ValueError, match="kind PROMPT_TUNING, which adds inputs and changes no weight"):
        models.load(str(folders / "prompt"), adapter="merge")
    (folders / "prompt/adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors"):
        models.load(str(folders / "prompt"), adapter="merge")


def test_an_adapter_of_another_model_or_with_lost_weights_is_refused(folders):
    from safetensors.torch import load_file, save_file

    tiny.save(folders / "wide", tiny.llama(hidden_size=128))
    path = folders / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(folders / "wide")}))
    with pytest.raises(ValueError, match=r"can't be merged into LlamaForCausalLM.*size mismatch"):
        models.load(str(folders / "adapter"), adapter="merge")
    for named, error, match in (
        (None, ValueError, "names no base_model_name_or_path"),
        ("/not/there", FileNotFoundError, "'/not/there' is neither packaged nor a folder"),
    ):
        path.write_text(json.dumps({**config, "base_model_name_or_path": named}))
        with pytest.raises(error, match=match):
            models.load(str(folders / "adapter"), adapter="merge")
    path.write_text(json.dumps(config))
    tensors = load_file(folders / "adapter/adapter_model.safetensors")
    tensors.popitem()
    save_file(tensors, folders / "adapter/adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing adapter keys"):
        models.load(str(folders / "adapter"), adapter="merge")


def test_adapters_are_not_merged_into_codes(folders):
    model, tokenizer = models.load(str(folders / "base"))
    rtn.quantize_(model, bits=4, group_size=32)
    compressed_tensors.save(model, tokenizer, folders / "q")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folders / "q" / name).write_bytes((folders / "adapter" / name).read_bytes())
    with pytest.raises(ValueError, match="adapters are merged into plain ones"):
        models.load(str(folders / "q"), adapter="merge")
    assert torch.equal(logits(models.load(str(folders / "q"), adapter="ignore")[0]), logits(model))


@pytest.mark.parametrize("inner", [False, True])
def test_a_model_that_carries_an_adapter_is_refused_before_the_work(tmp_path, inner):
    given = wrapped(tmp_path / "base")
    model = given.base_model.model if inner else given
    ids = tiny.tokens(2, 16)
    for work in (
        lambda: rtn.quantize_(model, bits=4, group_size=32),
        lambda: gptq.quantize_(model, ids, bits=4, group_size=32),
        lambda: embedding.quantize_(model, bits=4, group_size=32),
        lambda: depth.drop_blocks_(model, [1]),
        lambda: plain.save(model, tiny.tokenizer(), tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"carries an adapter \(4 layers, .*q_proj first\).*merge it first"):
            work()
    assert not (tmp_path / "out").exists()
    merged = given.merge_and_unload()
    rtn.quantize_(merged, bits=4, group_size=32)
    compressed_tensors.save(merged, tiny.tokenizer(), tmp_path / "out")
    assert torch.equal(logits(models.load(str(tmp_path / "out"))[0]), logits(merged))


def test_a_model_healed_with_adapters_is_an_ordinary_one(tmp_path):
    model = tiny.llama()
    with training.lora_(model, rank=2), pytest.raises(ValueError, match="carries an adapter"):
        plain.save(model, tiny.tokenizer(), tmp_path / "during")
    with training.lora_(model, rank=2), torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    plain.save(model, tiny.tokenizer(), tmp_path / "after")
    assert torch.equal(logits(models.load(str(tmp_path / "after"))[0]), logits(model))
