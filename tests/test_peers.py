"""Peers: everything around them with stand-ins, and the real ones where THIMBLE_PEERS names their environments."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lib import peers
from lib.peers import environments, llama_cpp, script
from lib.quantized import grid
from tests import tiny

# rounds to nearest and leaves scale and zero point at each layer, as auto-round does
FAKE = """
import os, sys, time
import torch

class AutoRound:
    def __init__(self, model, tokenizer, **settings):
        self.model, self.settings = model, settings

    def quantize(self):
        print("a word before the end")
        if os.environ.get("FAKE") == "fails":
            raise RuntimeError("the peer's own trouble")
        time.sleep(60 if os.environ.get("FAKE") == "sleeps" else 0)
        bits, size = self.settings["bits"], self.settings["group_size"]
        for layer in (part for name, part in self.model.named_modules() if name.endswith("proj")):
            groups = layer.weight.data.float().view(len(layer.weight), -1, size)
            low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
            scale = ((high - low) / (2**bits - 1)).half().float()
            zero = (-low / scale).round()
            codes = (groups / scale + zero).round().clamp(0, 2**bits - 1)
            layer.weight.data = (scale * (codes - zero)).view_as(layer.weight).to(layer.weight.dtype)
            layer.scale, layer.zp = scale.squeeze(-1), zero.squeeze(-1)
            if os.environ.get("FAKE") == "moves":
                layer.scale = layer.scale * 1.3

    def save_quantized(self, folder, format):
        os.makedirs(folder)
        with open(os.path.join(folder, "model.safetensors"), "wb") as file:
            file.write(bytes(1000))
"""


@pytest.fixture
def home(tmp_path, monkeypatch, forked_python):
    """THIMBLE_PEERS with a stand-in for auto-round whose interpreter is one like this plus a folder of modules."""
    place = tmp_path / "peers"
    (place / "modules" / "auto_round-0.16.1.dist-info").mkdir(parents=True)
    (place / "modules" / "auto_round.py").write_text(FAKE)
    (place / "modules" / "auto_round-0.16.1.dist-info" / "METADATA").write_text("Name: auto-round\nVersion: 0.16.1\n")
    python = place / "auto-round" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{place}/modules" exec {shlex.quote(forked_python)} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("THIMBLE_PEERS", str(place))
    return place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"), tiny.llama().to(torch.bfloat16))


def ask(checkpoint, tmp_path, **changes):
    settings = {"bits": 4, "group_size": 32, "folder": tmp_path / "result", **changes}
    return environments.quantize(
        settings.pop("name", "auto-round"), checkpoint, settings.pop("tokens", tiny.tokens()), **settings
    )


def test_names_and_choices():
    assert [peers.by_name(name).NAME for name in peers.PEERS] == list(peers.PEERS)
    with pytest.raises(ValueError, match="did you mean 'gptqmodel'"):
        peers.by_name("gptq-model")


@pytest.mark.parametrize("name", peers.PEERS)
def test_every_file_says_what_it_is_and_how_to_install_it(name):
    peer = peers.by_name(name)
    if name != "thimble":  # which is this repository: its interpreter is the one that asks
        assert peer.VERSION in "".join(peer.INSTALL) or name == "llama.cpp"
        assert peer.INTERPRETER.startswith(name)
    assert callable(peer.quantize) and set(peer.BITS) >= {2, 3, 4, 8}
    assert not {peer.MODULE} - {"lib.quantizers"} & set(sys.modules) - {"gguf"}  # reading about a peer needs no peer


def test_the_result_is_an_ordinary_checkpoint_with_the_peers_weights(home, checkpoint, tmp_path):
    result = ask(checkpoint, tmp_path, iterations=2)
    assert (result.version, result.packed_bytes, result.dtype) == ("0.16.1", 1000, "float32")
    assert result.seconds >= 0 and result.peak_bytes > 1e7 and result.options["iterations"] == 2
    assert result.options["batch_size"] == 8  # the peer's default stands in the result, too
    original = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    model = AutoModelForCausalLM.from_pretrained(result.folder, dtype="auto")
    assert model(tiny.tokens()).logits.isfinite().all()
    assert torch.equal(model.lm_head.weight, original.lm_head.weight.float())
    weight = model.model.layers[2].mlp.down_proj.weight
    groups = weight.detach().view(-1, 32)
    assert max(len(row.unique()) for row in groups) <= 16
    assert not torch.equal(weight, original.model.layers[2].mlp.down_proj.weight.float())
    stored = json.loads((result.folder / "peer.json").read_text())
    assert stored["seconds"] == result.seconds and stored["bits"] == 4
    from lib.sources import models

    assert models.load(result.folder)[0].dtype == torch.float32


def test_a_grid_is_undone_to_float32_and_a_misread_one_is_refused():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    scale, zero = grid.choose(weight, bits=3, group_size=32)
    exact = grid.dequantize(grid.quantize(weight, scale, zero, bits=3), scale, zero, bits=3)
    found = script.on_grid(exact.bfloat16(), scale, zero, bits=3, group_size=32)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="not on the grid"):
        script.on_grid(exact.bfloat16(), scale * 1.2, zero, bits=3, group_size=32)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bits": 5}, ValueError, "bits=5 was given; auto-round has 2, 3, 4, 8 bits"),
        ({"iteration": 2}, ValueError, "did you mean 'iterations'"),
        ({"iterations": "2"}, ValueError, "takes int"),
        ({"tokens": None}, ValueError, "calibrates on some"),
        ({"tokens": torch.zeros(4, 8)}, ValueError, "token ids are int64"),
        ({"tokens": torch.zeros(4, dtype=torch.long)}, ValueError, "make them with texts.tokens"),
        ({"python": "/nowhere/python"}, FileNotFoundError, "pip install torch"),
        ({"name": "hqq"}, FileNotFoundError, "hqq needs one of its own; run: python3 -m venv"),
        ({"group_size": 48}, RuntimeError, "group_size=48 does not divide 64 columns"),
    ],
)
def test_what_is_refused_and_how(home, checkpoint, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        ask(checkpoint, tmp_path, **changes)
    assert not (tmp_path / "result").exists()


def test_without_the_variable_the_error_says_what_to_set(checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("THIMBLE_PEERS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"THIMBLE_PEERS is not set.*pip install"):
        ask(checkpoint, tmp_path)


def test_a_folder_that_is_no_checkpoint_or_cannot_be_written(home, checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        ask(tmp_path, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose a folder"):
        ask(checkpoint, tmp_path, folder=tmp_path / "file" / "result")


def test_an_environment_without_the_peer(home, checkpoint, tmp_path):
    (home / "modules" / "auto_round.py").write_text("raise ImportError('built for another torch')")
    with pytest.raises(FileNotFoundError, match=r"built for another torch.*must be installed there; run: python3"):
        ask(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("mood", "error", "words"),
    [
        ("fails", RuntimeError, "the peer's own trouble"),
        ("moves", RuntimeError, "not on the grid"),
        ("sleeps", TimeoutError, "raise timeout"),
    ],
)
def test_a_failure_shows_the_output_and_leaves_nothing(home, checkpoint, tmp_path, monkeypatch, mood, error, words):
    monkeypatch.setenv("FAKE", mood)
    with pytest.raises(error, match=words):
        ask(checkpoint, tmp_path, timeout=3 if mood == "sleeps" else 600)
    assert not [path for path in tmp_path.iterdir() if "result" in path.name]


def test_formats_that_return_the_weights_are_refused(home, checkpoint, tmp_path):
    for options in ({"type": "Q4_1"}, {"token_embedding_type": "q4_1"}, {"stand_in": "Q5_1"}):
        with pytest.raises(ValueError, match="that grid returns weights"):
            ask(checkpoint, tmp_path, name="llama.cpp", tokens=None, **options)
    with pytest.raises(ValueError, match="no 4-bit format; choose one of Q4_K_M"):
        ask(checkpoint, tmp_path, name="llama.cpp", tokens=None, type="Q2_K")


def test_a_mixture_gets_the_stand_in_where_it_would_be_exact(monkeypatch, tmp_path):
    plan = "\n".join(f"[1/2] blk.0.{part}.weight - [64], 2 MiB -> 1 MiB ({kind})" for part, kind in
                     (("ffn_down", "q4_1"), ("ffn_up", "q4_0")))  # fmt: skip
    said = []
    monkeypatch.setattr(llama_cpp, "_tool", lambda name: name)
    monkeypatch.setattr(llama_cpp, "_run", lambda *command, job=None: said.append(command) or plan)
    job = script.Job(tmp_path, None, 4, 32, dict(llama_cpp.OPTIONS), tmp_path, tmp_path)
    assert llama_cpp._pack(job, "in", None, "Q4_0", "out") == ["blk.0.ffn_down.weight"]
    listed = said[1][said[1].index("--tensor-type-file") + 1].read_text().splitlines()
    assert listed == [r"^blk\.0\.ffn_down\.weight$=q5_0", r"^blk\.0\.ffn_up\.weight$=q4_0"]


def test_an_exact_copy_is_no_result(checkpoint, tmp_path):
    job = script.Job(checkpoint, None, 4, 32, {}, tmp_path, tmp_path)
    weights = {name: value.float() for name, value in job.load()[0].state_dict().items() if "proj" in name}
    with pytest.raises(ValueError, match="came back exactly"):
        llama_cpp._refuse_exact(job, weights, {"kinds": {"blk.0.ffn_up.weight": "Q5_1"}})
    weights = {name: value + 0.1 * value.std() for name, value in weights.items()}
    llama_cpp._refuse_exact(job, weights, {"kinds": {"blk.0.ffn_up.weight": "Q5_1"}})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_stream_of_bits_is_read_as_it_was_written(bits):
    from lib.peers import gptqmodel

    codes = torch.randint(2**bits, (64, 5), generator=torch.Generator().manual_seed(bits))
    words = []
    for column in codes.T.tolist():
        stream = sum(code << (bits * place) for place, code in enumerate(column))
        words.append([(stream >> (32 * word)) & 0xFFFFFFFF for word in range(64 * bits // 32)])
    packed = torch.tensor(words, dtype=torch.int64).T.to(torch.int32)  # wraps around as stored words do
    assert torch.equal(gptqmodel._codes(packed, bits).long(), codes)


@pytest.mark.parametrize("name", [name for name in peers.PEERS if name not in ("llama.cpp", "thimble")])
def test_the_real_peer_on_a_tiny_model(name, checkpoint, tmp_path):
    peer, root = peers.by_name(name), os.environ.get("THIMBLE_PEERS")
    if not root or not (Path(root) / peer.INTERPRETER).exists():
        pytest.skip(f"THIMBLE_PEERS names no environment with {name}")
    quick = {"iterations": 2} if name == "auto-round" else {}
    result = ask(checkpoint, tmp_path, name=name, tokens=tiny.tokens(8, 32), group_size=64, **quick)
    model = AutoModelForCausalLM.from_pretrained(result.folder, dtype="auto")
    assert model(tiny.tokens()).logits.isfinite().all() and result.packed_bytes > 0


def test_the_real_llama_cpp_on_the_packaged_model(tmp_path):
    root = os.environ.get("THIMBLE_PEERS")
    if not root or not (Path(root) / llama_cpp.INTERPRETER).exists():
        pytest.skip("THIMBLE_PEERS names no environment with llama.cpp")
    from lib.sources import packaged

    result = ask(packaged.folder(), tmp_path, name="llama.cpp", tokens=None, type="Q4_0")
    assert result.facts["tensor_bytes"] < result.packed_bytes < 1e8
    model = AutoModelForCausalLM.from_pretrained(result.folder, dtype="auto")
    assert model(torch.arange(8)[None]).logits.isfinite().all()


def test_what_is_kept_replaces_nothing(tmp_path):
    from types import SimpleNamespace

    from lib.peers import llama_cpp

    (tmp_path / "work").mkdir()
    packed = tmp_path / "work" / "Q4_0.gguf"
    packed.write_text("new")
    (tmp_path / "Q4_0.gguf").write_text("somebody's")
    for name in ("Q4_0-2.gguf", "Q4_0-3.gguf"):
        llama_cpp._keep(SimpleNamespace(options={"keep": str(tmp_path)}), packed, None)
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "Q4_0.gguf").read_text() == "somebody's"
