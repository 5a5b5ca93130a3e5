"""Models by name, folder and Hub id: what is loaded, what is said about it, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from lib import checkpoints, files, sources
from lib.sources import models
from tests import tiny


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(home):
    return tiny.save(home / "checkpoints" / "small")


def change(folder, name="config.json", **entries):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def logits(model):
    with torch.no_grad():
        return model(tiny.tokens()).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma2"])
def test_families_load_with_equal_logits(home, family):
    made = getattr(tiny, family)()
    model, tokenizer = models.load(tiny.save(home / family, made))
    assert type(model) is type(made) and not model.training
    assert torch.equal(logits(model), logits(made))
    assert model.tokenizer is tokenizer and tokenizer.decode(tokenizer("ab").input_ids) == "ab"


@pytest.mark.parametrize("name", ["small", "checkpoints/small"])
def test_a_checkpoint_has_a_name_and_is_noted(folder, name, capsys):
    models.load(name)
    expected = files.sha256(folder / "model.safetensors")
    assert sources.used()[-1] == {
        "kind": "model",
        "name": "small",
        "split": None,
        "origin": "folder checkpoints/small",
        "sha256": expected,
    }
    said = capsys.readouterr()
    assert said.out == (
        f"model small: folder checkpoints/small, float32 on cpu, 0.2 M parameters, sha256 {expected[:8]}\n"
    )
    assert said.err == ""


def test_loading_twice_is_noted_once(folder):
    models.load("small")
    before = sources.used()
    models.load("small")
    assert sources.used() == before
    before[0]["kind"] = "changed"
    assert sources.used()[0]["kind"] != "changed"


def test_places_hide_the_machine(home, tmp_path_factory, monkeypatch):
    data = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("THIMBLE_DATA", str(data))
    assert files.place(home / "checkpoints" / "x") == "checkpoints/x"
    assert files.place(files.ROOT / "lib") == "lib"
    assert files.place(data / "a" / "b.txt") == "$THIMBLE_DATA/a/b.txt"
    assert files.place(Path.home() / "models") == "~/models"
    assert files.place("/elsewhere/x") == "/elsewhere/x"


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "torch.float32"])
def test_dtype(folder, dtype):
    model, _ = models.load("small", dtype=dtype)
    assert str(model.dtype) in (str(dtype), f"torch.{dtype}")


def test_dtype_is_the_checkpoints_own(home):
    tiny.save(home / "half", tiny.llama().to(torch.bfloat16))
    assert models.load(home / "half")[0].dtype == torch.bfloat16


def test_unknown_dtype(folder):
    with pytest.raises(ValueError, match=r"dtype='bfloat61'.*did you mean 'bfloat16'"):
        models.load("small", dtype="bfloat61")


def test_unknown_device(folder):
    with pytest.raises(ValueError, match=r"device='warp' cannot be used here.*use 'cpu'"):
        models.load("small", device="warp")


def test_overflow_in_float16_is_named(home):
    model = tiny.llama()
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    tiny.save(home / "large", model)
    with pytest.raises(ValueError, match=r"model\.norm\.weight of .*1 NaN or infinite values in torch\.float16"):
        models.load(home / "large", dtype="float16")


@pytest.mark.parametrize("name", ["smal", "", "a/b/c", "./nowhere/here"])
def test_unknown_name(folder, name):
    with pytest.raises(
        FileNotFoundError, match=r"neither packaged nor a folder; choose one of gemma-3-270m, small, smollm2-135m"
    ):
        models.load(name)


def test_unknown_name_suggests_the_nearest(folder):
    with pytest.raises(FileNotFoundError, match="did you mean 'smollm2-135m-instruct'"):
        models.load("smollm2-135m")


def test_damage_is_found_before_loading(folder):
    checkpoints.write_manifest(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="has changed since its manifest was written: SHA-256"):
        models.load("small")


def test_missing_weights_are_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        models.load("small")


def test_shapes_of_another_configuration(folder):
    change(folder, intermediate_size=96)
    with pytest.raises(ValueError, match=r"lacks 12 weights of the shape.*model\.layers\.0\.mlp\.down_proj\.weight"):
        models.load("small")


def test_unused_tensors_are_mentioned(folder, capsys):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "surplus.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    models.load("small")
    assert "1 tensors of the checkpoint are unused, the first is surplus.weight" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["zork", "vit"])
def test_unknown_architecture(folder, kind):
    change(folder, model_type=kind, architectures=None)
    with pytest.raises(ValueError, match=f"no decoder-only model that the installed transformers knows.*'{kind}'"):
        models.load("small")


def test_encoder_without_architecture(folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=256, **sizes)).save_pretrained(folder)
    change(folder, architectures=None)
    with pytest.raises(ValueError, match=r"is an encoder \(bert\); only decoder-only"):
        models.load("small")


def test_neox_is_a_decoder(home):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(vocab_size=256, **sizes)).eval()
    assert torch.equal(logits(models.load(tiny.save(home / "neox", made))[0]), logits(made))


def test_quantized_by_others(folder):
    change(folder, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ValueError, match=r"quantized already \(bitsandbytes\)"):
        models.load("small")


def test_compressed_tensors_go_to_their_own_loader(folder, monkeypatch):
    compressed = pytest.importorskip("lib.export.compressed_tensors")
    change(folder, quantization_config={"quant_method": "compressed-tensors"})
    monkeypatch.setattr(compressed, "load", lambda folder, adapter: (tiny.llama(seed=7), tiny.tokenizer()))
    assert torch.equal(logits(models.load("small")[0]), logits(tiny.llama(seed=7)))
    model, _ = models.load("small", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and model.model.rotary_emb.inv_freq.dtype == torch.float32


UNUSABLE = r"has no usable tokenizer.*tokenizer\.json must be beside the weights"


@pytest.mark.parametrize(
    "content, said", [(None, UNUSABLE), ("not json", r"tokenizer\.json is not JSON .*copy it again"), ("{}", UNUSABLE)]
)
def test_no_tokenizer(folder, content, said):
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").unlink() if content is None else (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        models.load("small")


def test_settings_of_transformers_are_left_as_found():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), checkpoints.quiet():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_hub_model(folder, home, monkeypatch, capsys):
    asked = {}
    snapshot = tiny.save(home / "hub" / "0123456789abcdef")

    def download(name, **options):
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model, _ = models.load("someone/tiny")
    assert torch.equal(logits(model), logits(tiny.llama()))
    assert asked["name"] == "someone/tiny" and not any(".bin" in pattern for pattern in asked["allow_patterns"])
    assert "model someone/tiny: Hub someone/tiny@0123456789ab, float32 on cpu" in capsys.readouterr().out


def test_hub_without_network(monkeypatch):
    def download(name, **options):
        raise LocalEntryNotFoundError("no route to the Hub\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        FileNotFoundError, match=r"'someone/tiny' was looked for .* \(no route to the Hub\); check the id"
    ):
        models.load("someone/tiny")


def test_fingerprints(folder, home):
    model = tiny.llama()
    assert checkpoints.fingerprint(folder) == files.sha256(folder / "model.safetensors")
    assert (
        checkpoints.fingerprint(model)
        == checkpoints.fingerprint(tiny.llama())
        != checkpoints.fingerprint(tiny.llama(seed=1))
    )
    before = checkpoints.fingerprint(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert checkpoints.fingerprint(model) != before
    tiny.llama().save_pretrained(home / "shards", max_shard_size="200KB")
    assert checkpoints.fingerprint(str(home / "shards")) not in (before, checkpoints.fingerprint(folder))


def test_of_a_hub_model_the_templates_are_fetched_and_no_second_copy_of_the_weights():
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["config.json", "model-00001-of-00002.safetensors", "additional_chat_templates/tool_use.jinja"]
    others = ["onnx/config.json", "a/model.safetensors", "add/model.safetensors", "original/consolidated.safetensors"]
    others += [
        "additional/x.json",
        "adapter/adapter_model.safetensors",
        "consolidated.safetensors",
        "pytorch_model.bin",
    ]
    kept = filter_repo_objects([*wanted, *others], allow_patterns=models._FETCHED, ignore_patterns=models._NOT_FETCHED)
    assert list(kept) == wanted
