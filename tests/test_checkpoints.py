"""A checkpoint folder is looked at before it is loaded: what is damaged, unsafe or missing is refused by name."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import checkpoints, runtime
from lib.export import compressed_tensors
from lib.sources import models
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    tiny.llama().save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_whole_folder_passes(folder):
    assert checkpoints.checkpoint(folder)["model_type"] == "llama"
    assert checkpoints.weights(folder) == [folder / "model.safetensors"]
    assert checkpoints.verify(folder) == {}


def test_whole_sharded_folder_passes(sharded):
    checkpoints.checkpoint(sharded)
    assert [path.name for path in checkpoints.weights(sharded)] == sorted(p.name for p in sharded.glob("*.safetensors"))


def test_config_missing(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*copy it there"):
        checkpoints.checkpoint(folder)


@pytest.mark.parametrize("content", [b"{half", b"[]", b"\xff\xfe"])
def test_config_not_json(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not (a )?JSON"):
        checkpoints.checkpoint(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights; it needs model\.safetensors"):
        checkpoints.checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pkl"])
def test_pickle_only(folder, name):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the pickle was opened",)

    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=f"as pickle \\({name}\\)"):
        checkpoints.checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_lfs_pointer(folder, name):
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 269060552\n")
    with pytest.raises(ValueError, match=f"{name} is a git-LFS pointer.*git lfs pull"):
        checkpoints.checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_cut_short(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="cut short"):
        checkpoints.checkpoint(folder)


def test_longer_than_its_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"where its header asks for"):
        checkpoints.checkpoint(folder)


@pytest.mark.parametrize("header", [b"no json at all", b"[1]", b'{"a": 1}', b'{"a": {"data_offsets": []}}'])
def test_unreadable_header(folder, header):
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="no readable safetensors header"):
        checkpoints.checkpoint(folder)


def test_missing_shard(sharded):
    gone = checkpoints.weights(sharded)[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {gone.name} of"):
        checkpoints.checkpoint(sharded)


def test_index_without_shards(sharded):
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="names no shards"):
        checkpoints.checkpoint(sharded)


@pytest.mark.parametrize("offset", [-1, -40000, 3000])
def test_flipped_bit(folder, offset):
    checkpoints.write_manifest(folder, licence="none")
    checkpoints.checkpoint(folder)
    flip(folder / "model.safetensors", offset)
    with pytest.raises(
        ValueError, match=r"model\.safetensors (has changed since its manifest was written: SHA-256|has )"
    ):
        checkpoints.checkpoint(folder)


def test_manifest_lists_every_file_and_its_origin(folder):
    written = json.loads(checkpoints.write_manifest(folder, licence="Apache-2.0").read_text())
    assert written["licence"] == "Apache-2.0"
    assert set(written["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert checkpoints.verify(folder) == written["files"]


def test_manifest_with_a_file_gone(folder):
    checkpoints.write_manifest(folder)
    (folder / "generation_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"generation_config\.json is missing, but the manifest lists it"):
        checkpoints.checkpoint(folder)


def test_all_that_changed_and_all_that_is_missing_is_named(folder):
    checkpoints.write_manifest(folder)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    flip(folder / "tokenizer.json", 9)
    with pytest.raises(ValueError) as error:
        checkpoints.verify(folder)
    said = str(error.value)
    assert "tokenizer.json has changed since" in said and "(so have tokenizer_config.json)" in said
    assert (
        "generation_config.json are missing" in said
        and "move manifest.json elsewhere" in said
        and "folder and" not in said
    )


def test_a_change_with_the_times_put_back_is_found(folder):
    checkpoints.write_manifest(folder)
    checkpoints.verify(folder)
    path = folder / "model.safetensors"
    before = path.stat()
    flip(path, -1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"model\.safetensors has changed since its manifest was written: SHA-256"):
        checkpoints.verify(folder)


def test_manifest_without_files(folder):
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json has no \"files\""):
        checkpoints.checkpoint(folder)


OTHERS = ['["a"]', '{"name": "page", "icons": {}}', '{"files": ["a"]}', '{"files": {"model.safetensors": "abc"}}']


@pytest.mark.parametrize("content", OTHERS)
def test_a_manifest_of_another_program_proves_nothing_and_stays(folder, content, capsys):
    (folder / "manifest.json").write_text(content)
    assert checkpoints.checkpoint(folder) and checkpoints.verify(folder) == {}
    assert "manifest.json is in another program's form" in capsys.readouterr().out
    assert (folder / "manifest.json").read_text() == content


@pytest.mark.parametrize(
    "content", ['{"files": {"mod', '{"written_by": "thimble"}', '{"kind": "plain", "files": []}', "{}"]
)
def test_a_damaged_manifest_is_refused_and_nobody_is_told_to_delete_it(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"manifest\.json .*copy the folder again, or move manifest\.json elsewhere"
    ) as found:
        checkpoints.checkpoint(folder)
    assert "delete" not in str(found.value)


@pytest.mark.parametrize("name", ["a\0b", "cut \ud83d", "n" * 300])
def test_a_path_that_cannot_be_is_no_model(name, tmp_path):
    for load in (models.load, runtime.load):
        for place in (name, tmp_path / name):
            with pytest.raises(FileNotFoundError, match=r"is neither packaged nor a folder"):
                load(place)
    for load in (checkpoints.checkpoint, compressed_tensors.load):
        with pytest.raises(ValueError, match=r"the path .* (holds a NUL or half a character|is too long)"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent is no folder"):
        compressed_tensors.load(tmp_path / "absent")


def test_hash_is_read_once_while_the_file_stays(folder, monkeypatch):
    path = folder / "model.safetensors"
    expected = checkpoints.sha256(path)
    monkeypatch.setattr(checkpoints.manifest.files, "sha256", lambda path: "read again")
    assert checkpoints.sha256(path) == expected
    path.write_bytes(path.read_bytes() + b"\0")
    assert checkpoints.sha256(path) == "read again"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code(folder, name):
    change(folder / name, auto_map={"AutoModelForCausalLM": "modeling.Custom"})
    (folder / "modeling.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(ValueError, match=f"{name} asks to run code of its own"):
        checkpoints.checkpoint(folder)


@pytest.mark.parametrize(
    "entries, found",
    [
        ({"is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}, "is an encoder-decoder"),
        ({"architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClassification"),
    ],
)
def test_other_kinds_of_models(folder, entries, found):
    change(folder / "config.json", **entries)
    with pytest.raises(ValueError, match=f"{found}; only decoder-only language models"):
        checkpoints.checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(value):
    model = tiny.llama()
    checkpoints.finite(model)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4:6] = value
    with pytest.raises(ValueError, match=r"model\.layers\.2\.mlp\.up_proj\.weight of tiny holds 2 NaN or infinite"):
        checkpoints.finite(model, "tiny")


def test_safetensors_size_agrees_with_the_library(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "model.safetensors")
    checkpoints.checkpoint(folder)


@pytest.mark.parametrize(
    "key, value",
    [("bos_token_id", 1.5), ("bos_token_id", [1]), ("pad_token_id", True), ("eos_token_id", ["a"]),
     ("attention_dropout", "0.1"), ("attention_dropout", 2), ("resid_pdrop", -1)],
)  # fmt: skip
def test_token_ids_and_dropout_of_another_kind_are_refused_by_both_loaders(tmp_path, key, value):
    tiny.save(tmp_path, tiny.llama())
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "manifest.json").unlink(missing_ok=True)
    for load in (models.load, runtime.load):
        with pytest.raises(ValueError, match=f"{key}="):
            load(str(tmp_path))
