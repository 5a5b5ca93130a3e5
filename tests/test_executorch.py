"""ExecuTorch programs: which grids XNNPACK's layers hold, and whole models as its runtime computes them."""

import json

import pytest
import torch

from lib import files
from lib.export import certify, executorch, executorch_codes, executorch_contents, reader_executorch, runtimes
from lib.quantizers import embedding, rtn
from tests import gguf_models
from tests.test_onnx import matrix


@pytest.mark.parametrize(
    ("bits", "options"),
    [
        (2, {}),
        (3, {"group_size": 64}),
        (4, {"symmetric": True}),
        (4, {"symmetric": True, "group_size": -1}),
        (2, {"levels": "half"}),
        (3, {"levels": "balanced"}),
    ],
)
def test_codes_of_minus_8_to_7_are_our_weights(bits, options):
    ours = matrix(bits, **options)
    assert executorch_codes.refusal(ours) is None
    codes, scale, size = executorch_codes.signed(ours)
    assert codes.dtype == torch.int8 and codes.min() >= -8 and codes.max() <= 7 and size % 32 == 0
    assert torch.equal((codes.reshape(6, -1, size) * scale[..., None]).reshape(6, -1), ours.dense())
    assert torch.equal(scale.bfloat16().float(), scale)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (matrix(4), "whole numbers from -[0-9]+ to [0-9]+ times its scales"),
        (matrix(3, levels="half"), "whole numbers from -[0-9]+ to [0-9]+ times its scales"),
        (matrix(3, group_size=16), "groups of 16 columns, which 32 does not divide"),
        (matrix(8, levels="half"), "8 bits with zero points that are halves"),
        (matrix(2)._replace(codebook=torch.zeros(4)), "a codebook of 4 levels"),
        (matrix(2)._replace(scale=torch.full((6, 4), 0.1)), "scales beyond bfloat16"),
    ],
)
def test_grids_that_it_cannot_hold_are_refused_with_the_cost(ours, said):
    """It would leave their layers in float32 without a word."""
    with pytest.raises(ValueError, match=said + r".* otherwise='F32' \(exact, 3,072 bytes\)"):
        executorch._of_codes("layer", ours, None)
    assert executorch._of_codes("layer", ours, "F32") == "F32"


def build(**options):
    """A tiny model on grids that XNNPACK holds, its quantized embedding too."""
    model = gguf_models.build("llama", num_hidden_layers=2, **options)
    rtn.quantize_(model, bits=4, group_size=32, symmetric=True)
    embedding.quantize_(model, bits=3, group_size=32)
    return model


def test_what_is_wrong_is_told_before_the_work(tmp_path, monkeypatch):
    model = build()
    monkeypatch.setenv("THIMBLE_PEERS", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"not installed.* -m lib.export.runtimes executorch"):
        executorch.export(model, model.tokenizer, tmp_path / "model")
    for lengths in ({"length": 10_000}, {"batch": 1}, {"length": 8, "batch": 16}, {"length": True}):
        with pytest.raises(ValueError, match=r"1 < batch <= length <= 512"):
            executorch.export(model, model.tokenizer, tmp_path / "model", **lengths)
    with pytest.raises(ValueError, match="otherwise='F16'; 'F32' is allowed"):
        executorch.export(model, model.tokenizer, tmp_path / "model", otherwise="F16")
    monkeypatch.setattr(runtimes, "installed", lambda name: True)
    usage = type(files.shutil.disk_usage(tmp_path))(10**9, 10**9, executorch.ROOM)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs \d+ MB and its disk has \d+ MB free"):
        executorch.export(model, model.tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_program_holds_the_bytes_of_every_matrix(tmp_path):
    """Found in the file as they are; one that is not there is missing."""
    model, file = build(), tmp_path / executorch.FILE
    parts = []
    for matrix_ in (part.quantized for part in model.modules() if hasattr(part, "quantized")):
        codes, scale, _ = executorch_codes.signed(matrix_)
        low, high = (codes.to(torch.int16) + 8).to(torch.uint8).reshape(len(codes), -1, 2).unbind(-1)
        parts += [(low | high << 4).numpy().tobytes(), scale.bfloat16().view(torch.int16).numpy().tobytes()]
        parts.append(scale.numpy().tobytes())
    file.write_bytes(b"".join(parts))
    found = executorch_contents.compare(file, model)
    assert found["exact"] == found["tensors"] == 15 and found["missing"] == []
    file.write_bytes(b"".join(parts[:3] + parts[6:]))  # the embedding is the head too
    assert len(executorch_contents.compare(file, model)["missing"]) == 1


@pytest.mark.long
@pytest.mark.skipif(
    not runtimes.installed("executorch"), reason=f"not installed; run: {' && '.join(reader_executorch.INSTALL)}"
)
def test_its_runtime_computes_what_the_model_does(tmp_path, monkeypatch):
    monkeypatch.setattr(certify, "NEW_TOKENS", 3)
    model = build()
    folder = executorch.export(model, model.tokenizer, tmp_path / "modèle, l'été", length=64, batch=16)
    found = json.loads(certify.certify(folder, model).read_text())
    said = found["backends"]["executorch"]
    assert found["faults"] == [], said
    assert found["weights"]["exact"] == 15 and all(said["same_tokens"])
    assert 0 < said["as written"]["kl"] < 0.02
    file = folder / executorch.FILE
    spoilt = bytearray(file.read_bytes())
    codes, _, _ = executorch_codes.signed(model.model.layers[1].mlp.up_proj.quantized)
    low, high = (codes.to(torch.int16) + 8).to(torch.uint8).reshape(len(codes), -1, 2).unbind(-1)
    packed = (low | high << 4).numpy().tobytes()
    place = spoilt.find(packed)
    spoilt[place : place + len(packed)] = (high | low << 4).numpy().tobytes()  # nibbles swapped
    file.write_bytes(spoilt)
    faults = json.loads(certify.certify(folder, model).read_text())["faults"]
    assert any("model.layers.1.mlp.up_proj is missing" in each for each in faults)
    assert any("executorch (as written): KL" in each for each in faults)
