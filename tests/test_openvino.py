"""OpenVINO's files: their constants are our codes, and whole models as OpenVINO computes them."""

import json

import pytest
import torch

from lib.export import certify, onnx_codes, openvino, openvino_contents, reader_openvino, runtimes
from lib.quantized import integers
from lib.quantizers import embedding, rtn
from tests import gguf_models
from tests.test_onnx import matrix


def write(folder, model):
    """The constants of `model` as OpenVINO writes them: u4 with the first code in the low half of a byte."""
    layers, data = [], b""
    for name, part in model.named_modules():
        if not hasattr(part, "quantized"):
            continue
        ours = part.quantized
        rows, groups = ours.scale.shape
        codes = ours.codes.reshape(rows, groups, -1)
        for key, kind, shape, raw in (
            ("codes", "u4", codes.shape, onnx_codes.packed(codes.reshape(-1), 4)),
            ("zeros", "u8", [rows, groups, 1], ours.zero_point),
            ("scales", "bf16", [rows, groups, 1], ours.scale.view(torch.int16)),
        ):
            held = raw.contiguous().numpy().tobytes()
            layers.append(
                f'<layer id="{len(layers)}" name="{name}.{key}" type="Const"><data element_type="{kind}" '
                f'shape="{", ".join(map(str, shape))}" offset="{len(data)}" size="{len(held)}"/></layer>'
            )
            data += held
    (folder / openvino.FILE).write_text(f"<net><layers>{''.join(layers)}</layers></net>")
    (folder / openvino.DATA).write_bytes(data)
    return folder / openvino.FILE


def test_the_weights_are_read_from_the_file(tmp_path):
    model = gguf_models.build("llama", bits=4, num_hidden_layers=2)
    embedding.quantize_(model, bits=3, group_size=32)
    file = write(tmp_path, model)
    found = openvino_contents.compare(file, model)
    assert found["exact"] == found["tensors"] == 15 and found["missing"] == found["left_over"] == []
    assert openvino_contents.types(file)["codes of u4"] == 16
    data = bytearray((tmp_path / openvino.DATA).read_bytes())
    data[openvino_contents.constants(file)["model.layers.0.mlp.up_proj.codes"].offset] ^= 16
    (tmp_path / openvino.DATA).write_bytes(data)
    assert openvino_contents.compare(file, model)["where"] == "model.layers.0.mlp.up_proj"


def test_grids_are_stored_in_4_or_8_bits_or_refused():
    grids = [(2, {}, 4), (3, {"levels": "half"}, 4), (4, {"levels": "half"}, 8), (5, {}, 8), (8, {}, 8)]
    assert [openvino.width(matrix(bits, **options)) for bits, options, _ in grids] == [each for *_, each in grids]
    assert "a codebook of 4 levels" in integers.refusal(matrix(2)._replace(codebook=torch.zeros(4)))
    assert "8 bits with zero points that are halves" in integers.refusal(matrix(8, levels="half"))


def test_a_missing_runtime_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_PEERS", str(tmp_path))
    model = gguf_models.build("llama", bits=4, num_hidden_layers=1)
    with pytest.raises(FileNotFoundError, match=r"not installed.* -m lib.export.runtimes openvino"):
        openvino.export(model, model.tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match="there is no runtime 'openvine'"):
        runtimes.install("openvine")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.skipif(
    not runtimes.installed("openvino"), reason=f"not installed; run: {' && '.join(reader_openvino.INSTALL)}"
)
@pytest.mark.parametrize(
    ("bits", "options"), [(4, {}), (4, {"symmetric": True}), (8, {}), (3, {"levels": "half"}), (None, {})]
)
def test_openvino_computes_what_the_model_does(tmp_path, monkeypatch, bits, options):
    monkeypatch.setattr(certify, "NEW_TOKENS", 3)
    model = gguf_models.build("llama", num_hidden_layers=2)
    if bits:
        rtn.quantize_(model, bits=bits, group_size=32, **options)
        embedding.quantize_(model, bits=4, group_size=32)
    folder = openvino.export(model, model.tokenizer, tmp_path / "modèle, l'été")
    found = json.loads(certify.certify(folder, model).read_text())
    said = found["backends"]["openvino"]
    assert found["faults"] == [], said
    assert found["weights"]["exact"] == found["weights"]["tensors"] == 15 and all(said["same_tokens"])
    assert said["float32"]["largest"] < 1e-3 and said["float32"]["greedy"]["same"] == 1.0
