"""Ordinary checkpoints: complete or absent, checked before the work, clean after killed saves."""

import json
import os
import time

import pytest
import torch

from lib import checkpoints, files
from lib.export import plain
from tests import tiny
from tests.packed import quantize_


def logits(model):
    with torch.no_grad():
        return model(tiny.tokens()).logits


@pytest.mark.parametrize("tied", [True, False])
def test_plain_transformers_loads_it(tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny.llama(tie_word_embeddings=tied)
    assert plain.save(model, model.tokenizer, tmp_path / "deep" / "it") == tmp_path / "deep" / "it"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "deep" / "it")
    assert torch.equal(logits(again), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "deep" / "it").decode([104, 105]) == "hi"


def test_the_manifest_lists_every_file(tmp_path):
    folder = plain.save(tiny.llama(), tiny.tokenizer(), tmp_path / "it")
    manifest = json.loads((folder / checkpoints.MANIFEST).read_text())
    assert manifest["kind"] == "plain"
    assert {*manifest["files"], checkpoints.MANIFEST} == {path.name for path in folder.iterdir()}
    assert manifest["files"]["model.safetensors"] == files.sha256(folder / "model.safetensors")


def test_size_is_that_of_the_file_without_its_header(tmp_path):
    model = tiny.llama()
    plain.save(model, tiny.tokenizer(), tmp_path / "it")
    content = (tmp_path / "it" / "model.safetensors").read_bytes()
    assert plain.size(model) == len(content) - 8 - int.from_bytes(content[:8], "little")


def test_a_quantized_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"28 quantized layers.*self_attn\.q_proj.*compressed_tensors\.save"):
        plain.save(quantize_(tiny.llama()), tiny.tokenizer(), tmp_path / "it")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    model = tiny.llama()
    model.save_pretrained = lambda *args, **kwargs: pytest.fail("the work had begun")
    usage = type(files.shutil.disk_usage(tmp_path))(10**9, 10**9, plain.ROOM + plain.size(model) - 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs \d+ MB and its disk has \d+ MB free"):
        plain.save(model, tiny.tokenizer(), tmp_path / "it")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_found_before_the_work():
    model = tiny.llama()
    model.save_pretrained = lambda *args, **kwargs: pytest.fail("the work had begun")
    with pytest.raises(PermissionError, match="cannot be written"):  # nobody creates files in /proc, not even root
        plain.save(model, tiny.tokenizer(), "/proc/self/it")


def test_a_save_that_fails_leaves_the_old_folder(tmp_path):
    folder = plain.save(tiny.llama(), tiny.tokenizer(), tmp_path / "it")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = tiny.tokenizer()
    broken.save_pretrained = lambda path: (_ for _ in ()).throw(RuntimeError("no tokenizer"))
    with pytest.raises(RuntimeError, match="no tokenizer"):
        plain.save(tiny.llama(seed=1), broken, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_save_replaces_the_old_folder(tmp_path):
    plain.save(tiny.llama(), tiny.tokenizer(), tmp_path / "it")
    (tmp_path / "it" / "extra").touch()
    model = tiny.llama(seed=1, num_hidden_layers=2)
    plain.save(model, tiny.tokenizer(), tmp_path / "it")
    assert not (tmp_path / "it" / "extra").exists()
    assert torch.equal(logits(type(model).from_pretrained(tmp_path / "it")), logits(model))


def test_leftovers_of_killed_saves_go_and_saves_in_progress_stay(tmp_path):
    killed, running, young, other = (tmp_path / f".{name}.tmp" for name in ("it.1", "it.2", "it.3", "item.1"))
    for path in (killed, running, young, other):
        path.mkdir()
        (path / "model.safetensors").write_text("half")
    for path in (killed, running, other):
        os.utime(path, (time.time() - 2 * plain.GRACE,) * 2)
    with plain._locked(running):
        plain.save(tiny.llama(), tiny.tokenizer(), tmp_path / "it")
    assert not killed.exists() and running.exists() and young.exists() and other.exists()
