"""One list of weights: what is computed with is what is fingerprinted and verified, or the folder is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import checkpoints, runtime
from lib.export import plain
from lib.sources import models
from tests import tiny


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))


@pytest.fixture
def sharded(tmp_path):
    model = tiny.llama()
    model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def index(folder, **changed):
    """Change where the index says that tensors are; None takes one out of it."""
    path = folder / "model.safetensors.index.json"
    found = json.loads(path.read_text())
    merged = {**found["weight_map"], **{key.replace("__", "."): name for key, name in changed.items()}}
    found["weight_map"] = {key: name for key, name in merged.items() if name is not None}
    path.write_text(json.dumps(found))
    return found["weight_map"]


def refused(folder, match, error=ValueError):
    """Every reader refuses `folder` with the same words."""
    for read in (
        lambda: models.load(str(folder)),
        lambda: runtime.load(folder),
        lambda: checkpoints.checkpoint(folder),
    ):
        with pytest.raises(error, match=match):
            read()


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.tokens(1, 16), use_cache=False).logits


def test_shards_beside_a_single_file_are_refused_by_every_reader(sharded, tmp_path):
    tiny.save(tmp_path / "other", tiny.llama(seed=5))
    shutil.copy(tmp_path / "other/model.safetensors", sharded)
    refused(sharded, r"holds model.safetensors and, by its index, \d+ shards.*move model.safetensors elsewhere")
    with pytest.raises(ValueError, match="readers differ in which"):
        checkpoints.fingerprint(sharded)
    (sharded / "model.safetensors.index.json").rename(sharded / "index.json.old")
    assert torch.equal(logits(models.load(str(sharded))[0]), logits(tiny.llama(seed=5)))
    assert checkpoints.fingerprint(sharded) == checkpoints.fingerprint(tmp_path / "other")


def test_an_index_of_a_single_file_is_that_file(tmp_path):
    folder = tiny.save(tmp_path / "m")
    before, keys = checkpoints.fingerprint(folder), list(load_file(folder / "model.safetensors"))
    weight_map = dict.fromkeys(keys, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert torch.equal(logits(models.load(str(folder))[0]), logits(tiny.llama()))
    assert checkpoints.fingerprint(folder) == before


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/elsewhere/model.safetensors", "sub/a.safetensors", "a.bin", 3]
)
def test_an_index_names_safetensors_files_beside_it(sharded, name):
    index(sharded, model__norm__weight=name)
    refused(sharded, "shards are safetensors files beside their index")


def test_a_tensor_in_two_shards(sharded):
    first, second = checkpoints.weights(sharded)[:2]
    tensors = load_file(first)
    key = next(iter(tensors))
    save_file({**load_file(second), key: tensors[key] + 1}, second, {"format": "pt"})
    refused(sharded, f"holds {key} in {first.name} and in {second.name}")


def test_an_index_that_says_another_shard(sharded):
    (key, name), *_ = index(sharded).items()
    other = next(path.name for path in checkpoints.weights(sharded) if path.name != name)
    index(sharded, **{key.replace(".", "__"): other})
    refused(sharded, f"has {key} in {other}, which stands in {name}")


def test_a_tensor_that_the_index_does_not_name(sharded):
    key = "model.layers.1.mlp.up_proj.weight"
    index(sharded, **{key.replace(".", "__"): None})
    refused(sharded, f"does not name {key}")


def test_shards_that_the_index_does_not_name_are_not_read(sharded):
    before = checkpoints.fingerprint(sharded)
    save_file({"model.norm.weight": torch.zeros(64)}, sharded / "model-00099-of-00099.safetensors", {"format": "pt"})
    assert torch.equal(logits(models.load(str(sharded))[0]), logits(tiny.llama()))
    assert checkpoints.fingerprint(sharded) == before


def test_other_files_beside_the_model_are_not_read(tmp_path):
    folder = tiny.save(tmp_path / "m")
    before = checkpoints.fingerprint(folder)
    tiny.save(tmp_path / "other", tiny.llama(seed=5))
    for name in ("model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "other/model.safetensors", folder / name)
    torch.save(tiny.llama(seed=6).state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(logits(models.load(str(folder))[0]), logits(tiny.llama()))
    assert checkpoints.fingerprint(folder) == before


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "consolidated.safetensors"])
def test_a_variant_alone_is_named_and_not_guessed(tmp_path, name):
    folder = tiny.save(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, f"no index, but {name}; which of them are the model is not guessed", FileNotFoundError)


def test_a_manifest_must_list_what_is_read(tmp_path):
    plain.save(tiny.llama(), tiny.tokenizer(), tmp_path / "m")
    listed = json.loads((tmp_path / "m/manifest.json").read_text())
    del listed["files"]["model.safetensors"]
    (tmp_path / "m/manifest.json").write_text(json.dumps(listed))
    refused(tmp_path / "m", "model.safetensors is not in manifest.json")


def test_links_into_a_cache_are_followed(tmp_path):
    folder, linked = tiny.save(tmp_path / "blobs"), tmp_path / "snapshot"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(f"../blobs/{path.name}")
    model, _ = models.load(str(linked))
    assert torch.equal(logits(model), logits(tiny.llama())) and model.name_or_path == str(linked)


def test_the_generation_settings_are_read(tmp_path):
    model = tiny.llama()
    model.generation_config.repetition_penalty = 1.25
    tiny.save(tmp_path / "m", model)
    assert models.load(str(tmp_path / "m"))[0].generation_config.repetition_penalty == 1.25


def test_float64_is_read_quantized_and_saved(tmp_path):
    from transformers import AutoModelForCausalLM

    from lib.export import compressed_tensors
    from lib.metrics import count, perplexity
    from lib.quantizers import gptq

    original = tiny.llama().double()
    tiny.save(tmp_path / "m", original)
    model, tokenizer = models.load(str(tmp_path / "m"))
    assert model.dtype == torch.float64 and torch.equal(logits(model), logits(original))
    assert perplexity.measure(model, tiny.tokens(4, 32)).value > 0 and len(count.ledger(tmp_path / "m"))
    gptq.quantize_(model, tiny.tokens(4, 32), bits=4, group_size=32)
    compressed_tensors.save(model, tokenizer, tmp_path / "q")
    assert torch.equal(logits(models.load(str(tmp_path / "q"))[0]), logits(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")), logits(model))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_types_that_are_no_weights_are_refused_by_name(tmp_path, dtype):
    from lib.export import size

    folder = tiny.save(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, r"mlp.up_proj.weight in .* is of type \w+; F64, F32, F16, BF16 are read.*choose the original")
    with pytest.raises(ValueError, match="is of type torch"):
        size.file_bytes(tensors)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"]
)
def test_integers_in_place_of_weights_are_refused_by_name(tmp_path, name, dtype):
    folder = tiny.save(tmp_path / "m", tiny.llama(attention_bias=True))
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = (tensors[name] * 100).to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, rf"{name} in .* is of type \w+; F64, F32, F16, BF16 are read.*the scales that belong to it")


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}])
def test_an_index_without_metadata_is_read(sharded, metadata):
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    (sharded / "model.safetensors.index.json").write_text(json.dumps({**metadata, "weight_map": weight_map}))
    assert torch.equal(logits(models.load(str(sharded))[0]), logits(tiny.llama()))


def test_generation_settings_that_are_not_json_are_refused(tmp_path):
    folder = tiny.save(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": 1')
    refused(folder, "generation_config.json is not JSON")


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"hidden_size": "64"}, "a value that transformers makes no model of"),
        ({"num_attention_heads": 0}, "a value that transformers makes no model of"),
        ({"rms_norm_eps": None}, "a value that transformers makes no model of"),
        ({"dtype": "float8_e4m3fn"}, "dtype='float8_e4m3fn'; one of bfloat16, .*float32"),
        ({"dtype": "int8"}, "dtype='int8'; one of bfloat16, .* is allowed"),
        ({"torch_dtype": 3}, "torch_dtype=3; one of bfloat16"),
        ({"hidden_act": "nope"}, "hidden_act='nope', which transformers does not know; choose one of .*gelu.*silu"),
        ({"attn_implementation": "nope"}, "attn_implementation='nope'; eager, sdpa, .* is allowed"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "_attn_implementation='kernels.*'; eager, sdpa"),
        ({"attn_implementation": "flash_attention_2"}, "a value that transformers makes no model of .*FlashAttention2"),
        ({"quantization_config": {}}, "quantization_config={}; settings by name, with a quant_method"),
        ({"quantization_config": []}, r"quantization_config=\[\]; settings by name"),
        ({"quantization_config": 0}, "quantization_config=0; settings by name"),
    ],
)
def test_a_configuration_of_which_no_model_can_be_made_is_refused_by_name(tmp_path, changed, said):
    folder = configured(tmp_path, **changed)
    with pytest.raises(ValueError, match=rf"m/config\.json has {said}"):
        models.load(str(folder))
    if said.startswith(tuple(changed)) and "hidden_act" not in changed:  # looked at before anything is read
        with pytest.raises(ValueError, match=rf"m/config\.json has {said}"):
            runtime.load(folder)


def configured(path, **changed):
    folder = tiny.save(path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    return folder


def test_names_of_types_and_of_attention_that_transformers_takes_are_taken(tmp_path):
    folder = configured(tmp_path, dtype="float", attn_implementation={"": "eager"}, quantization_config=None)
    model, _ = models.load(str(folder))
    assert model.dtype == torch.float32 and model.config._attn_implementation == "eager" and runtime.load(folder)
