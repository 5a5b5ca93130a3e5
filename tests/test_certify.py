"""Certificates: an export that computes what its model does has no fault, and every planted one is found."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import types

import gguf as package
import numpy
import pytest

from lib.export import certify, compressed_tensors, gguf, reader_llama_cpp
from lib.folders import manifest
from tests import families, gguf_models


@pytest.fixture(scope="module")
def model():
    made = gguf_models.build("llama", bits=3, group_size=64)
    made.tokenizer = gguf_models.words(begins=True)
    return made


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    return gguf.export(model, model.tokenizer, tmp_path_factory.mktemp("exports") / "modèle tout petit")


@pytest.fixture
def folder(written, tmp_path):
    """A copy of the export, to be spoilt."""
    return shutil.copytree(written, tmp_path / written.name)


@pytest.fixture
def inside(monkeypatch):
    """Readers run in this process, which has transformers loaded already; answers are three tokens long."""

    def run(command, **_):
        monkeypatch.setattr(sys, "argv", command[2:])
        try:
            importlib.import_module(command[2]).main()
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, "", "")

    instead = types.SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(certify, "subprocess", instead)
    monkeypatch.setattr(certify, "NEW_TOKENS", 3)


def judged(folder, model, **options):
    """The certificate's content."""
    return json.loads(certify.certify(folder, model, backends=("transformers",), **options).read_text())


def test_an_export_has_no_fault(folder, model, inside):
    found = judged(folder, model)
    assert found["faults"] == []
    said = found["backends"]["transformers"]
    assert all(said["same_tokens"]) and said["float32"]["greedy"] == {"same": 1.0, "first_divergence": None}
    assert 0 <= said["float32"]["kl"] < 1e-9 and said["float32"]["largest"] < 1e-3
    assert found["weights"]["exact"] == found["weights"]["tensors"] and found["weights"]["left_over"] == []
    assert found["file"]["sha256"] == manifest.sha256(folder / gguf.FILE)
    assert manifest.foreign(folder) == []  # the certificate belongs to the export
    assert judged(folder, model)["faults"] == []  # checked again
    gguf.export(model, model.tokenizer, folder)  # and replaced
    assert not (folder / certify.NAME).exists()


def blocks(file):
    """The bytes of a layer's blocks of Q4_0, [blocks, 18], to be changed in place."""
    found = next(each for each in file.tensors if each.name == "blk.1.ffn_up.weight")
    assert found.tensor_type.name == "Q4_0"
    return found.data.reshape(-1, 18)


def codes(data):
    return numpy.concatenate([data[:, 2:] & 15, data[:, 2:] >> 4], 1)


def store(data, values):
    data[:, 2:] = values[:, :16] | values[:, 16:] << 4


def zero_point_off_by_one(file):
    data = blocks(file)
    store(data, (codes(data) + 1) & 15)


def nibbles_swapped(file):
    data = blocks(file)
    data[:, 2:] = data[:, 2:] >> 4 | data[:, 2:] << 4


def group_size_wrong(file):
    data = blocks(file).reshape(-1, 4, 18)
    data[:, :, :2] = data[:, :1, :2]


def scale_in_the_wrong_type(file):
    """bfloat16 where half precision is read."""
    data = blocks(file)
    scale = data[:, :2].copy().view(numpy.float16).astype(numpy.float32)
    data[:, :2] = (scale.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8)


def block_transposed(file):
    data = blocks(file)
    store(data, codes(data).reshape(-1, 4, 8).transpose(0, 2, 1).reshape(-1, 32))


def set_field(file, key, value):
    file.fields[key].parts[-1][0] = value


def beginning_missing(file):
    set_field(file, "tokenizer.ggml.add_bos_token", False)


def another_rotation(file):
    set_field(file, "llama.rope.freq_base", 500000.0)


def block_count(value):
    def plant(file):
        set_field(file, "llama.block_count", value)

    plant.__name__ = f"block_count_{value}"
    return plant


def older_merges(file):
    """Two merges have changed places, as a tokenizer's earlier version had them."""
    found = file.fields["tokenizer.ggml.merges"]
    first, second = (found.parts[found.data[place]] for place in (0, 1))
    first[:], second[:] = second.copy(), first.copy()


FAULTS = {
    zero_point_off_by_one: r"weights differ by up to .*, most in blk.1.ffn_up.weight",
    nibbles_swapped: r"most in blk.1.ffn_up.weight",
    group_size_wrong: r"most in blk.1.ffn_up.weight",
    scale_in_the_wrong_type: r"most in blk.1.ffn_up.weight",
    block_transposed: r"most in blk.1.ffn_up.weight",
    beginning_missing: r"cuts 4 of 4 prompts into other tokens",
    another_rotation: r"\(float32\): KL ",
    older_merges: r"cuts [1-4] of 4 prompts into other tokens",
    block_count(5): r"transformers could not read it: .* lacks",
    block_count(3): r"\(float32\): KL ",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_are_found(folder, model, inside, plant):
    file = package.GGUFReader(folder / gguf.FILE, "r+")
    plant(file)
    file.data.flush()
    manifest.seal(folder)  # as an exporter with this fault would
    faults = judged(folder, model)["faults"]
    assert any(re.search(FAULTS[plant], fault) for fault in faults), faults


def test_a_changed_file_and_a_block_left_behind_are_told(folder, model, inside):
    with open(folder / gguf.FILE, "ab") as file:
        file.write(b"\0")
    shorter = gguf_models.build("llama", bits=3, group_size=64, num_hidden_layers=3)
    shorter.tokenizer = model.tokenizer
    faults = judged(folder, shorter)["faults"]
    assert "the folder holds model.gguf (changed since it was written)" in faults
    assert "the tensor blk.3.attn_k.weight is none of the model's" in faults


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"backends": ("llama",)}, ValueError, "there is no backend 'llama'"),
        ({}, FileNotFoundError, "holds no model.gguf"),
    ],
)
def test_wrong_arguments_are_told(tmp_path, model, arguments, error, said):
    with pytest.raises(error, match=said):
        certify.certify(tmp_path, model, **arguments)


def test_a_runtime_that_is_not_installed_is_named_with_its_command(folder, model, monkeypatch):
    monkeypatch.setenv("THIMBLE_PEERS", str(folder))
    monkeypatch.setattr(certify, "NEW_TOKENS", 1)
    found = json.loads(certify.certify(folder, model, backends=("llama.cpp",)).read_text())
    assert "cyllama==" in found["backends"]["llama.cpp"]["skipped"]
    assert found["faults"] == ["no backend has read it"]


def seen(peak, greedy, **others):
    modes = {"float32 cache": greedy, **others}
    return {"base_bytes": 20, "peak_bytes": peak} | {
        mode: {"seconds": {"greedy": each}} for mode, each in modes.items()
    }


def test_a_backend_that_takes_another_path_is_told_by_bytes_and_seconds(monkeypatch):
    from lib.export import fallback

    monkeypatch.setattr(fallback, "LARGE", 500)

    def said(backend):
        plain = {"base_bytes": 20, "peak_bytes": 700, "float32": {"seconds": {"greedy": 2.0}}}
        return fallback.remarks({"transformers": plain, "llama.cpp": backend}, file=90, dense=540)[1:]

    assert said(seen(150, 0.5)) == [] and said({"skipped": "it is not installed"}) == []
    (dequantized,) = said(seen(20 + 90 + 300, 0.5))
    assert re.search(r"llama.cpp takes .* it holds dequantized weights", dequantized)
    (slow,) = said(seen(150, 9.0))
    assert "4.5 times the seconds of plain transformers" in slow
    (other,) = said(seen(150, 0.5, fast=1.0))
    assert "fast mode needs 2.0 times" in other
    assert fallback.remarks({"llama.cpp": seen(900, 1.0)}, file=500, dense=540) == []  # a file of plain numbers
    monkeypatch.setattr(fallback, "LARGE", 600)
    assert said(seen(20 + 90 + 300, 0.5)) == []  # of so few weights, the runtime itself takes the most


def test_greedy_answers_part_at_their_first_difference():
    from lib.export import agreement

    found = agreement.greedy([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 7, 8]], [[1, 1, 1], [2, 0.25, 3]])
    assert found == {
        "same": 0.5,
        "first_divergence": {"prompt": 1, "token": 1, "gap": 0.25, "reference": 7, "reader": 5},
    }


def test_differences_of_logits_are_those_of_the_formula():
    import torch

    from lib.export import agreement

    ours, theirs = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = agreement.logits([theirs.numpy()], [ours.numpy()])
    kl = torch.nn.functional.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert found["kl"] == pytest.approx(float(kl), rel=1e-5) and found["positions"] == 5
    assert found["largest"] == pytest.approx(float((ours - theirs).abs().max()))


@pytest.mark.long
def test_the_command_line_reads_it_in_a_fresh_process(tmp_path, model):
    compressed_tensors.save(model, model.tokenizer, tmp_path / "packed")
    gguf.export(model, model.tokenizer, tmp_path / "exported")
    command = [sys.executable, "-m", "lib.export.certify", str(tmp_path / "exported"), str(tmp_path / "packed")]
    done = subprocess.run([*command, "--backend", "transformers"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "no fault found" in done.stdout, done.stderr


SCALED = {  # as Gemma 3's larger models have it
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


def installed():
    return certify.interpreter(reader_llama_cpp) is not None


@pytest.mark.skipif(not installed(), reason=f"llama.cpp is not installed; run: {' && '.join(reader_llama_cpp.INSTALL)}")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"bits": 4}),
        ("llama", {"bits": 3, "tie_word_embeddings": False, "attention_bias": True}),
        ("llama", families.FAMILIES["llama_3"][2]),
        ("llama", families.FAMILIES["llama_linear"][2]),
        ("llama", families.FAMILIES["llama_yarn"][2]),
        ("qwen3", families.FAMILIES["llama_yarn"][2]),
        ("qwen2", {"bits": 4}),
        ("qwen3", {"bits": 6}),
        ("mistral", {"head_dim": 32}),
        ("phi3", {"bits": 4}),
        ("gemma3", {"bits": 4}),
        ("gemma3", {"rope_parameters": SCALED}),
    ],
)
def test_stock_llama_cpp_reads_it(tmp_path, monkeypatch, family, options):
    """Its logits are ours up to what rounding inputs to 8 bits explains, its tokens are ours."""
    monkeypatch.setattr(certify, "NEW_TOKENS", 3)
    model = gguf_models.build(family, **options)
    folder = gguf.export(model, model.tokenizer, tmp_path / "modèle")
    found = json.loads(certify.certify(folder, model, backends=("llama.cpp",)).read_text())
    said = found["backends"]["llama.cpp"]
    assert all(said["same_tokens"])
    # plain weights: nothing is rounded, but llama.cpp looks up GELU in a table of half precision
    assert "bits" in options or said["float32 cache"]["largest"] < (1e-2 if family == "gemma3" else 1e-3)
    assert found["faults"] == [], found["backends"]
