"""Damaged and foreign packed checkpoints are refused, each with what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.export import compressed_tensors
from tests import tiny
from tests.packed import quantize_


def edit(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path):
    """A packed tiny Llama without its manifest, so that tests may damage it."""
    compressed_tensors.save(quantize_(tiny.llama()), tiny.tokenizer(), tmp_path / "packed")
    (tmp_path / "packed" / "manifest.json").unlink()
    return tmp_path / "packed"


def test_a_flipped_bit_is_refused(tmp_path):
    folder = compressed_tensors.save(quantize_(tiny.llama()), tiny.tokenizer(), tmp_path / "it")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        compressed_tensors.load(folder)


DAMAGES = {
    "other format": (lambda c: c.update(format="int-quantized"), "'int-quantized'; only pack-quantized"),
    "no target": (lambda c: c["config_groups"]["group_0"].update(targets=["Conv"]), "is no target"),
    "tensor": (lambda c: c["config_groups"]["group_0"]["weights"].update(strategy="tensor"), "strategy 'tensor'"),
    "float": (lambda c: c["config_groups"]["group_0"]["weights"].update(type="float"), "type 'float'"),
    "1 bit": (lambda c: c["config_groups"]["group_0"]["weights"].update(num_bits=1), "1 bits.*2 to 8 bits"),
    "activations": (lambda c: c["config_groups"]["group_0"].update(input_activations={"num_bits": 8}), "activations"),
    "other bits": (lambda c: c["config_groups"]["group_0"]["weights"].update(num_bits=3), "3 bits and 4 groups a row"),
    "other groups": (lambda c: c["config_groups"]["group_0"]["weights"].update(group_size=16), "8 groups a row"),
    "symmetric": (lambda c: c["config_groups"]["group_0"]["weights"].update(symmetric=True), "a symmetric pack"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_configs_that_do_not_fit_are_refused(folder, damage):
    change, message = DAMAGES[damage]
    edit(folder / "config.json", lambda config: change(config["quantization_config"]))
    with pytest.raises(ValueError, match=message):
        compressed_tensors.load(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.norm.weight": None}, r"lacks \['model.norm.weight'\]"),
        ({"extra": torch.zeros(1)}, r"\['extra'\] too many"),
        ({"model.layers.1.mlp.up_proj.weight_scale": None}, "is stored as weight_packed, weight_shape"),
        (
            {"model.layers.9.mlp.up_proj.weight_packed": torch.zeros(1)},
            "layers.9.mlp.up_proj is packed, but it is",
        ),
        ({"model.layers.1.mlp.up_proj.weight_packed": torch.zeros(128, 8)}, "float32.*int32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, changes, message):
    stored = load_file(folder / "model.safetensors") | changes
    kept = {key: tensor for key, tensor in stored.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        compressed_tensors.load(folder)


def test_a_layer_of_another_size_than_the_config_says_is_refused(folder):
    edit(folder / "config.json", lambda config: config.update(intermediate_size=96))
    with pytest.raises(ValueError, match=r"mlp\.\w+ "):
        compressed_tensors.load(folder)
