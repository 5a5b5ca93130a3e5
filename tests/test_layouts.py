"""AWQ's, GPTQ's and MLX's layouts: written from our codes, read by formulas, and opened by vLLM and mlx-lm at hand."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.export import (
    awq,
    certify,
    checkpoint_contents,
    column_layouts,
    compressed_tensors,
    gptq,
    mlx,
    older_settings,
    reader_checkpoint,
    reader_mlx,
    reader_vllm,
    runtimes,
)
from lib.quantizers import rtn
from lib.runtime import export_reader
from tests import gguf_models
from tests.test_certify import inside  # noqa: F401
from tests.test_onnx import matrix

LAYOUTS = {"awq": awq, "gptq": gptq}
EXPORTERS = {**LAYOUTS, "mlx": mlx}


def test_the_orders_of_eight_codes_are_those_of_the_loaders():
    """Of 0 to 7, AWQ's word holds 0 2 4 6 1 3 5 7, the first in the lowest bits."""
    codes = torch.arange(8, dtype=torch.uint8)[None]
    assert column_layouts.packed(codes, column_layouts.ORDER).item() == 0x75316420
    assert column_layouts.packed(codes).item() == 0x76543210
    words = torch.randint(-(2**31), 2**31, (3, 5)).to(torch.int32)
    for order in (column_layouts.ORDER, tuple(range(8))):
        assert torch.equal(column_layouts.packed(column_layouts.unpacked(words, order), order), words)


@pytest.mark.parametrize(("bits", "options"), [(2, {}), (3, {"levels": "half"}), (4, {"group_size": -1}), (4, {})])
def test_weights_come_back(bits, options):
    ours = matrix(bits, rows=16, **options)
    assert torch.equal(awq.dense(awq.pack(ours)), ours.dense())
    ours = matrix(bits, rows=16, symmetric=True, **{**options, "levels": "integer"})
    assert torch.equal(gptq.dense(gptq.pack(ours)), ours.dense())
    assert (gptq.pack(ours)["qzeros"].view(torch.uint32).to(torch.int64) == 0x77777777).all()  # 8, less one


@pytest.mark.parametrize("bits", range(2, 9))
def test_mlx_holds_every_width(bits):
    ours = matrix(bits, group_size=64, columns=192)
    found = mlx.pack(ours)
    stored = next(each for each in mlx.BITS if each >= bits)
    assert found["weight"].shape == (6, 192 * stored // 32) and found["scales"].dtype == torch.bfloat16
    assert torch.equal(mlx.dense(found, bits=stored, columns=192), ours.dense())


@pytest.mark.parametrize(
    ("ours", "symmetric", "said"),
    [
        (matrix(5, rows=8), False, "5 bits"),
        (matrix(4, rows=8, levels="half"), False, "4 bits with zero points that are halves"),
        (matrix(4, rows=8), True, "zero points of its own"),
        (matrix(4, rows=6), False, "6 rows and 128 columns, which 8 does not divide"),
        (matrix(2, rows=8)._replace(scale=torch.full((8, 4), 2.0**30)), False, "scales that half precision does not"),
    ],
)
def test_grids_that_a_layout_cannot_hold_are_named(ours, symmetric, said):
    assert said in column_layouts.refusal(ours, symmetric=symmetric)


def build(**options):
    model = gguf_models.build("llama", num_hidden_layers=2, **options).bfloat16()
    model.tokenizer = gguf_models.words()
    rtn.quantize_(model, bits=4, group_size=32, symmetric=True)
    return model


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders_hold_our_weights_and_leave_the_model_as_it_was(tmp_path, name):
    model = build()
    folder = LAYOUTS[name].export(model, model.tokenizer, tmp_path / "modèle")
    found = checkpoint_contents.compare(folder / "config.json", model)
    assert found["exact"] == found["tensors"] == 15 and found["missing"] == found["left_over"] == []
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == name
    assert not hasattr(model.config, "quantization_config")
    with pytest.raises(ValueError, match=r"has no quantized layers; quantize it first"):
        plain = gguf_models.build("llama", num_hidden_layers=1)
        LAYOUTS[name].export(plain, plain.tokenizer, tmp_path / "other")


def test_mlx_settings_name_the_grids(tmp_path):
    model = build()
    folder = mlx.export(model, model.tokenizer, tmp_path / "modèle")
    said = json.loads((folder / "config.json").read_text())
    assert said["quantization"] == {"group_size": 32, "bits": 4}
    assert said["rope_theta"] == said["rope_parameters"]["rope_theta"] == 10_000
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    parts = {key: stored[f"{name}.{key}"] for key in ("weight", "scales", "biases")}
    assert torch.equal(mlx.dense(parts, bits=4, columns=64), model.get_submodule(name).quantized.dense())

    found = checkpoint_contents.compare(folder / "config.json", model)
    assert found["exact"] == found["tensors"] == 15 and found["missing"] == found["left_over"] == []
    stored[f"{name}.weight"][0, 0] ^= 1  # another code
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint_contents.compare(folder / "config.json", model)["where"] == name


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
        (
            {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e6, "partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        (None, {}),
    ],
)
def test_the_rotation_is_told_in_the_older_form_too(tmp_path, newer, older):
    """Without its base at the top, mlx-lm opens the file and computes with another."""
    before = {"model_type": "llama", "rope_parameters": newer}
    (tmp_path / "config.json").write_text(json.dumps(before))
    older_settings.add(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == before | older


def test_a_packed_checkpoint_has_a_certificate(tmp_path, inside):  # noqa: F811
    """Plain transformers reads it here; the others say which layouts they leave out."""
    model = build()
    folder = compressed_tensors.save(model, model.tokenizer, tmp_path / "modèle")
    name = "transformers, checkpoint"
    found = certify.examined(folder, model, backends=(name,))
    assert found["faults"] == [] and found["weights"]["exact"] == 15, found["backends"]
    assert found["backends"][name]["float32"]["kl"] < 1e-4  # dequantized weights in bfloat16
    file = folder / "config.json"
    assert reader_mlx.unread(file) == "the layout of compressed-tensors"
    assert export_reader.unread(file) is reader_vllm.unread(file) is None
    file.write_text(json.dumps({"quantization": {"bits": 3}}))
    assert {reader_vllm.unread(file), export_reader.unread(file)} == {"MLX's layout", "mlx's layout"}
    assert reader_mlx.unread(file) is None and reader_checkpoint.unread(file).startswith("mlx's layout")
    file.write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 3}}))
    assert reader_vllm.unread(file) == "3 bits" and "GPTQ" in reader_mlx.unread(file)


def read_by(name, backend, tmp_path, monkeypatch, mode):
    """What the certificate of a tiny model in the layout `name` says of `backend`."""
    monkeypatch.setattr(certify, "NEW_TOKENS", 3)
    sizes = dict(hidden_size=128, intermediate_size=256, num_attention_heads=4, head_dim=32)
    model = build(**sizes, rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    write = EXPORTERS[name].export if name in EXPORTERS else compressed_tensors.save
    folder = write(model, model.tokenizer, tmp_path / "modèle")
    found = certify.examined(folder, model, backends=(backend,))
    said = found["backends"][backend]
    assert found["faults"] == [], said
    assert all(said["same_tokens"])
    return said[mode]


@pytest.mark.long
@pytest.mark.skipif(
    certify.interpreter(reader_vllm) is None, reason=f"not installed; run: {' && '.join(reader_vllm.INSTALL)}"
)
@pytest.mark.parametrize("name", [*LAYOUTS, "compressed_tensors"])
def test_vllm_opens_it(tmp_path, monkeypatch, name):
    assert read_by(name, "vllm", tmp_path, monkeypatch, "bfloat16")["kl"] < 0.05


@pytest.mark.long
@pytest.mark.skipif(not runtimes.installed("mlx"), reason=f"not installed; run: {' && '.join(reader_mlx.INSTALL)}")
@pytest.mark.parametrize("name", ["mlx", "awq"])
def test_mlx_opens_it(tmp_path, monkeypatch, name):
    assert read_by(name, "mlx-lm", tmp_path, monkeypatch, "float32")["kl"] < 1e-4  # 0.42 with another base


@pytest.mark.long
def test_our_engine_opens_it(tmp_path, monkeypatch):
    assert read_by("compressed_tensors", "thimble", tmp_path, monkeypatch, "as written")["kl"] < 0.02
