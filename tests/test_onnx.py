"""ONNX files: our codes in onnxruntime's operators, exactly, and whole models as onnxruntime runs them."""

import json
import re
import shutil

import numpy
import onnx as package
import onnxruntime
import pytest
import torch

from lib import files
from lib.export import (
    certify,
    checks,
    formats,
    onnx,
    onnx_codes,
    onnx_contents,
    onnx_graph,
    onnx_settings,
    reader_onnxruntime_genai,
)
from lib.folders import manifest
from lib.quantized import grid
from lib.quantizers import embedding, rtn
from tests import gguf_models, tiny
from tests.test_certify import inside  # noqa: F401


def matrix(bits, *, rows=6, columns=128, group_size=32, seed=0, **options):
    """A rounded matrix, with zeros far off the middle where zero points may be."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) + 0.4
    scale, zero = grid.choose(weight, bits=bits, group_size=group_size, **options)
    codes = grid.quantize(weight, scale, zero, bits=bits)
    size = columns if group_size == -1 else group_size
    return grid.Quantized(codes, scale, zero, bits, size, levels=options.get("levels", "integer"))


GRIDS = [
    (2, {}, 2, 32),
    (2, {"symmetric": True, "group_size": 64}, 2, 64),
    (2, {"levels": "half"}, 4, 32),
    (2, {"levels": "balanced"}, 4, 32),
    (3, {"group_size": 16}, 4, 16),
    (3, {"symmetric": True, "group_size": -1}, 4, 128),
    (4, {"group_size": 48, "columns": 96}, 4, 16),
    (4, {"columns": 40, "group_size": -1}, 4, 32),
    (4, {"columns": 576, "group_size": -1}, 4, 64),
    (5, {"group_size": 64}, 8, 64),
    (8, {"group_size": 256, "columns": 512}, 8, 256),
]


@pytest.mark.parametrize(("bits", "options", "stored", "block"), GRIDS)
def test_onnxruntime_computes_with_our_weights(bits, options, stored, block):
    """Its products of unit vectors are the weights; its rows are those of the matrix."""
    ours = matrix(bits, **options)
    made = onnx_codes.pack(ours)
    assert (made.bits, made.block) == (stored, block)
    rows, columns = ours.codes.shape
    said = {"codes": made.codes, "bits": made.bits, "columns": columns}
    assert torch.equal(onnx_codes.dense(scales=made.scales, zeros=made.zeros, **said), ours.dense())
    products = operator(made, "MatMulNBits", torch.eye(columns), N=rows, K=columns)
    assert numpy.array_equal(products.T, ours.dense().numpy())
    if columns % block == 0:  # an embedding with a short block is refused: see below
        found = operator(made, "GatherBlockQuantized", torch.tensor([2, 0]), gather_axis=0, quantize_axis=1)
        assert numpy.array_equal(found, ours.dense()[[2, 0]].numpy())


def operator(made, name, given, **attributes):
    """What onnxruntime's operator answers."""
    parts = {"codes": made.codes, "scales": made.scales, "zeros": made.zeros}
    held = [package.numpy_helper.from_array(value.numpy(), key) for key, value in parts.items() if value is not None]
    order = ["given", "codes", "scales", "zeros"]
    if name != "MatMulNBits":
        order[:2] = order[1::-1]
        held[0] = package.numpy_helper.from_array(made.codes.flatten(1).numpy(), "codes")
    order = order if made.zeros is not None else order[:3]
    node = package.helper.make_node(
        name, order, ["found"], domain="com.microsoft", bits=made.bits, block_size=made.block, **attributes
    )
    kind = package.TensorProto.FLOAT if given.is_floating_point() else package.TensorProto.INT64
    graph = package.helper.make_graph(
        [node], "one", [package.helper.make_tensor_value_info("given", kind, list(given.shape))],
        [package.helper.make_tensor_value_info("found", package.TensorProto.FLOAT, None)], held,
    )  # fmt: skip
    versions = [package.helper.make_opsetid("", 18), package.helper.make_opsetid("com.microsoft", 1)]
    model = package.helper.make_model(graph, opset_imports=versions, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"given": given.numpy()})[0]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (matrix(4, group_size=24, columns=96), "groups of 24 columns, which no block of 16 to 256 divides"),
        (matrix(8, levels="half"), "8 bits with zero points that are halves"),
        (matrix(2)._replace(codebook=torch.tensor([-1.0, -0.2, 0.3, 1.0])), "a codebook of 4 levels"),
    ],
)
def test_grids_that_no_operator_holds_are_refused_with_the_cost(ours, said):
    cost = r".*otherwise='F16' 1,\d+ bytes with .*, 'F32' \d,\d+ bytes with errors up to 0"
    with pytest.raises(ValueError, match=said + cost):
        onnx._of_codes("layer", ours, None)
    assert onnx._of_codes("layer", ours, "F32").error == 0


def model_of(bits=4, *, table_bits=4, layers=2, **options):
    """A tiny model with quantized layers and a quantized embedding that is its head."""
    made = gguf_models.build("llama", num_hidden_layers=layers, **options)
    made.tokenizer = gguf_models.words(begins=True)
    rtn.quantize_(made, bits=bits, group_size=32)
    if table_bits:
        embedding.quantize_(made, bits=table_bits, group_size=32)
    return made


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tiny_vocabulary(), "ids up to 262, the embedding 200 rows"),
        (lambda: without_tokenizer(), "has no tokenizer"),
        (lambda: packed_by_others(), r"is packed already, in another program's form \(model.layers.0.*qweight\)"),
        (lambda: without_numbers(), "has no numbers"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_work(tmp_path, make, said):
    model = make()
    with pytest.raises(ValueError, match=said):
        onnx.export(model, model.tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match=said):
        checks.check(model, model.tokenizer)
    assert not list(tmp_path.iterdir())


def tiny_vocabulary():
    model = tiny.llama(vocab_size=200, num_hidden_layers=1)
    model.tokenizer = gguf_models.words()
    return model


def without_tokenizer():
    model = tiny.llama(num_hidden_layers=1)
    model.tokenizer = None
    return model


def packed_by_others():
    model = tiny.llama(num_hidden_layers=1)
    model.model.layers[0].mlp.up_proj.register_buffer("qweight", torch.zeros(8, 8, dtype=torch.int32))
    return model


def without_numbers():
    model = tiny.llama(num_hidden_layers=1)
    words = model.tokenizer
    model = model.to("meta")
    model.tokenizer = words
    return model


def test_a_wrong_level_and_a_full_disk_are_told_before_the_work(tmp_path, monkeypatch):
    model = model_of(layers=1)
    with pytest.raises(ValueError, match="level=2; "):
        onnx.export(model, model.tokenizer, tmp_path / "model", level=2)
    with pytest.raises(ValueError, match="otherwise='Q4_0'; F16, F32 are allowed"):
        onnx.export(model, model.tokenizer, tmp_path / "model", otherwise="Q4_0")
    usage = type(files.shutil.disk_usage(tmp_path))(10**9, 10**9, onnx.ROOM)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs \d+ MB and its disk has \d+ MB free"):
        onnx.export(model, model.tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_settings_name_what_the_graph_has(tmp_path):
    model = tiny.qwen3()
    onnx_settings.write(model, model.tokenizer, tmp_path, onnx.FILE)
    said = json.loads((tmp_path / onnx_settings.NAME).read_text())["model"]
    assert (said["type"], said["context_length"], said["vocab_size"]) == ("qwen3", 512, 256)
    decoder = said["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (16, 2, 4)
    assert decoder["inputs"]["past_key_names"] % 3 == "past_key_values.3.key"


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    return onnx.export(model, model.tokenizer, tmp_path_factory.mktemp("exports") / "modèle tout petit")


@pytest.fixture
def folder(written, tmp_path):
    """A copy of the export, to be spoilt."""
    return shutil.copytree(written, tmp_path / written.name)


def judged(folder, model):
    return json.loads(certify.certify(folder, model, backends=("onnxruntime",)).read_text())


@pytest.mark.long
def test_an_export_has_no_fault(folder, model, inside):  # noqa: F811
    found = judged(folder, model)
    assert found["faults"] == []
    said = found["backends"]["onnxruntime"]
    assert all(said["same_tokens"]) and said["float32"]["greedy"]["same"] == 1.0
    assert said["float32"]["largest"] < 1e-3 and 0 < said["fast"]["kl"] < 0.02
    assert found["weights"]["exact"] == found["weights"]["tensors"] == 15
    assert found["types"]["MatMulNBits (4 bits, level 4)"] == 15
    assert found["types"]["GatherBlockQuantized (4 bits)"] == 1
    assert manifest.foreign(folder) == []


def change(folder, name, how):
    """Write the file again with one of its tensors changed."""
    graph = package.load(folder / onnx.FILE)
    (found,) = [each for each in graph.graph.initializer if each.name == name]
    found.CopyFrom(package.numpy_helper.from_array(how(package.numpy_helper.to_array(found).copy()), name))
    (folder / onnx.DATA).unlink()
    package.save(graph, folder / onnx.FILE, save_as_external_data=True, location=onnx.DATA)
    manifest.seal(folder)  # as an exporter with this fault would


LAYER = "model.layers.1.mlp.up_proj"
FAULTS = {
    "zero point off by one": ("zeros", lambda zeros: zeros ^ 1),
    "nibbles swapped": ("codes", lambda codes: codes >> 4 | codes << 4),
    "a block transposed": ("codes", lambda codes: codes.reshape(-1, 4, 4).swapaxes(1, 2).reshape(codes.shape)),
    "scales of other groups": ("scales", lambda scales: numpy.roll(scales, 1, 1)),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(folder, model, inside, fault):  # noqa: F811
    part, how = FAULTS[fault]
    change(folder, f"{LAYER}.{part}", how)
    faults = judged(folder, model)["faults"]
    assert any(re.search(f"weights differ by up to .*, most in {LAYER}", each) for each in faults), faults
    assert any("onnxruntime (float32): KL" in each for each in faults), faults


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"bits": 3, "tie_word_embeddings": False, "attention_bias": True}),
        ("llama", {}),
        ("qwen2", {"bits": 8}),
        ("qwen3", {"bits": 2}),
        ("phi3", {"bits": 4}),
        ("gemma3", {"bits": 4}),
    ],
)
def test_families_are_computed_alike(tmp_path, inside, family, options):  # noqa: F811
    made = gguf_models.build(family, num_hidden_layers=4, **options).bfloat16()
    made.tokenizer = gguf_models.words()
    folder = onnx.export(made, made.tokenizer, tmp_path / "modèle")
    found = judged(folder, made)
    assert found["faults"] == [], found
    assert found["backends"]["onnxruntime"]["float32"]["largest"] < 1e-3


def test_an_interrupted_export_leaves_the_old_one(tmp_path, monkeypatch):
    def partly(graph, file, data):
        file.write_bytes(b"half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_graph, "build", lambda *_, **__: None)
    monkeypatch.setattr(onnx_graph, "write", lambda graph, file, data: file.write_bytes(b"whole"))
    small = model_of(layers=1)
    folder = onnx.export(small, small.tokenizer, tmp_path / "modèle, l'été")
    monkeypatch.setattr(onnx_graph, "write", partly)
    with pytest.raises(KeyboardInterrupt):
        onnx.export(small, small.tokenizer, folder)
    assert (folder / onnx.FILE).read_bytes() == b"whole" and [path.name for path in tmp_path.iterdir()] == [folder.name]


def installed():
    return certify.interpreter(reader_onnxruntime_genai) is not None


@pytest.mark.long
@pytest.mark.skipif(not installed(), reason=f"not installed; run: {' && '.join(reader_onnxruntime_genai.INSTALL)}")
def test_onnxruntime_genai_opens_the_folder(folder, model, monkeypatch):
    """Its own tokenizer begins no text as this one does: what it computes is right, its ids are not."""
    monkeypatch.setattr(certify, "NEW_TOKENS", 3)
    found = json.loads(certify.certify(folder, model, backends=("onnxruntime-genai",)).read_text())
    assert found["faults"] == ["onnxruntime-genai cuts 4 of 4 prompts into other tokens"]
    said = found["backends"]["onnxruntime-genai"]["as written"]
    assert 0 < said["kl"] < 0.02 and said["positions"] > 100
    other = gguf_models.words("llama-bpe")
    monkeypatch.setattr(model, "tokenizer", other)
    other.save_pretrained(folder)
    manifest.seal(folder)
    assert certify.examined(folder, model, backends=("onnxruntime-genai",))["faults"] == []


def test_formats_are_told_apart_by_their_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model.gguf or model.onnx.*export.gguf.export or"):
        formats.find(tmp_path)
    (tmp_path / onnx.FILE).touch()
    found = formats.find(tmp_path)
    assert formats.contents(found) is onnx_contents and set(formats.chosen(found, None)) == set(found.readers)
    with pytest.raises(ValueError, match=r"no backend 'llama\.cpp' of model\.onnx"):
        formats.chosen(found, ("llama.cpp",))
