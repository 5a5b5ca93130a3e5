"""Ordinary checkpoints: complete or absent, checked before the work, clean after killed saves."""

import json

import pytest
import torch

from lib import checkpoints, files, runtime
from lib.export import compressed_tensors, plain
from lib.sources import models
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
    model = tiny.llama(seed=1, num_hidden_layers=2)
    plain.save(model, tiny.tokenizer(), tmp_path / "it")
    assert torch.equal(logits(type(model).from_pretrained(tmp_path / "it")), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


TEMPLATES = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize("write", [plain.save, lambda m, t, f: compressed_tensors.save(quantize_(m), t, f)])
def test_several_chat_templates_come_back_and_are_checked(tmp_path, write):
    model = tiny.llama()
    model.tokenizer.chat_template = dict(TEMPLATES)
    write(model, model.tokenizer, tmp_path / "it")
    write(model, model.tokenizer, tmp_path / "it")
    assert models.load(tmp_path / "it")[1].chat_template == TEMPLATES
    nested = "additional_chat_templates/tool_use.jinja"
    assert checkpoints.verify(tmp_path / "it")[nested] == files.sha256(tmp_path / "it" / nested)
    (tmp_path / "it" / nested).write_text("changed")
    with pytest.raises(ValueError, match=rf"{nested} has changed"):
        models.load(tmp_path / "it")
    (tmp_path / "it" / nested).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{nested} is missing"):
        models.load(tmp_path / "it")


@pytest.mark.parametrize("template", ["a\ud83d", {"default": "fine", "other": "a\ud83d"}])
def test_half_a_character_in_a_template_is_refused_before_the_work(tmp_path, template):
    model = tiny.llama()
    model.tokenizer.chat_template = template
    with pytest.raises(ValueError, match="the chat template holds half a character"):
        plain.save(model, model.tokenizer, tmp_path / "model")
    assert not [*tmp_path.iterdir()]


def test_a_linked_folder_is_written_where_it_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "it").symlink_to(tmp_path / "disk")
    for seed in (0, 1):
        model = tiny.llama(seed=seed)
        assert plain.save(model, model.tokenizer, tmp_path / "it") == tmp_path / "it"
        assert (tmp_path / "it").is_symlink() and torch.equal(logits(models.load(tmp_path / "it")[0]), logits(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "it"]


def test_what_is_refused_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny.llama()
    model.save_pretrained = lambda *args, **kwargs: pytest.fail("the work had begun")
    (tmp_path / "models" / "sibling").mkdir(parents=True)
    (tmp_path / "file").touch()
    for folder in (".", "models", "file", "file/it", "/", "/proc", files.checkpoints()):
        with pytest.raises(OSError, match=r"; (choose|give|only)"):
            plain.save(model, model.tokenizer, folder)
    with pytest.raises(ValueError, match="is empty"):
        plain.save(model, model.tokenizer, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "models"]


def test_a_path_is_loaded_as_that_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    here, there = tiny.llama(seed=1), tiny.llama(seed=2)
    plain.save(here, here.tokenizer, "x/")
    plain.save(there, there.tokenizer, files.checkpoints() / "x")
    for load in (
        lambda name: models.load(name)[0].model.norm.weight,
        lambda name: torch.tensor(runtime.load(name).norm),
    ):
        assert torch.equal(load("./x"), here.model.norm.weight)
        assert torch.equal(load("../work/x/"), here.model.norm.weight)
        assert "is taken" not in capsys.readouterr().out
        assert torch.equal(load("x"), there.model.norm.weight)
        assert "x: checkpoints/x is taken; " in capsys.readouterr().out


def test_a_folder_that_transformers_wrote_over_is_neither_damaged_nor_replaced(tmp_path):
    model, other = tiny.llama(), tiny.llama(seed=1)
    folder = plain.save(model, model.tokenizer, tmp_path / "it")
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors has changed .*save_pretrained does.*move manifest\.json"):
        models.load(folder)
    with pytest.raises(FileExistsError, match=r"model\.safetensors \(changed since it was written\)"):
        plain.save(model, model.tokenizer, folder)
    (folder / "manifest.json").unlink()
    assert torch.equal(logits(models.load(folder)[0]), logits(other))
    with pytest.raises(FileExistsError, match=r"did not write; it holds .*config\.json"):
        plain.save(model, model.tokenizer, folder)
    assert torch.equal(logits(models.load(folder)[0]), logits(other))
