"""Models with integer products: every layer, generation, checkpoints in a fresh process, switching; failures."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import files
from lib.export import compressed_tensors
from lib.models import blocks
from lib.quantized import replace
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, int8, rtn
from lib.quantizers.absmax import absmax
from lib.quantizers.int8 import Int8Linear
from tests import tiny

READ = """
import sys, torch
from safetensors.torch import load_file, save_file
from lib.export import compressed_tensors
from lib.quantizers import int8
folder, tokens = sys.argv[1], load_file(sys.argv[2])["tokens"]
found = {}
with torch.no_grad():
    model, _ = compressed_tensors.load(folder)
    found["loaded"] = model(tokens).logits
    int8.integer_products_(model, threshold=2.0)
    found["integer"] = model(tokens).logits
    found["generated"] = model.generate(tokens[:, :8], max_new_tokens=8, do_sample=False)
save_file(found, sys.argv[3])
"""


def test_a_model_without_integer_instructions_gives_the_same_bits(monkeypatch):
    model, ids = tiny.qwen2(), tiny.tokens()
    int8.quantize_(model, threshold=2.0)
    with torch.no_grad():
        fast = model(ids).logits
        monkeypatch.setattr(int8, "has_integer_product", lambda device: False)
        assert torch.equal(model(ids).logits, fast)


@pytest.mark.parametrize("family", [tiny.llama, tiny.qwen2, tiny.phi, tiny.gemma2])
def test_every_layer_is_replaced_and_the_model_generates(family):
    model, original = family(), family()
    done = int8.quantize_(model, threshold=3.0)
    assert done.keys() == calibrate.layers(original).keys()
    for name, layer in calibrate.layers(model).items():
        assert isinstance(layer, Int8Linear) and layer.threshold == 3.0 and layer.codes.dtype == torch.int8
        expected = absmax(original.get_submodule(name).weight.detach(), bits=8, group_size=-1)
        assert torch.equal(layer.quantized.codes, expected.codes) and torch.equal(done[name].codes, expected.codes)
        bias = original.get_submodule(name).bias
        assert (layer.bias is None) == (bias is None) and (bias is None or torch.equal(layer.bias, bias))
    with torch.no_grad():
        ids = tiny.tokens(2, 8)
        found = model.generate(ids, max_new_tokens=6, do_sample=False)
        assert found.shape == (2, 14)
        exact, ours = original(ids).logits, model(ids).logits
        assert (ours - exact).square().mean() < 0.01 * exact.var()


def test_codes_take_one_byte_a_weight_and_no_other_matrix_is_kept():
    model = tiny.llama()
    int8.quantize_(model)
    with torch.no_grad():
        model(tiny.tokens())
    for layer in calibrate.layers(model).values():
        tensors = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        held = sum(tensor.nbytes for tensor in [*layer.buffers(), *tensors])
        assert held == layer.in_features * layer.out_features + 2 * layer.out_features


@pytest.mark.usefixtures("warm")
def test_what_is_saved_loads_in_a_fresh_process(tmp_path):
    model, ids = tiny.qwen2(), tiny.tokens()
    int8.quantize_(model, threshold=2.0)
    folder = compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    stored = load_file(folder / "model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.weight_packed"].nbytes == 64 * 128
    assert stored["model.layers.0.mlp.down_proj.weight_scale"].shape == (64, 1)
    save_file({"tokens": ids}, tmp_path / "tokens")
    command = [sys.executable, "-c", READ, folder, tmp_path / "tokens", tmp_path / "logits"]
    subprocess.run(command, check=True, cwd=files.ROOT)
    found, plain = load_file(tmp_path / "logits"), copy.deepcopy(model)
    replace.replace_(plain, {name: layer.quantized for name, layer in calibrate.layers(plain).items()})
    for name, layer in calibrate.layers(plain).items():
        plain.set_submodule(name, QuantLinear(layer.quantized, layer.bias))
    with torch.no_grad():
        assert torch.equal(found["integer"], model(ids).logits)
        assert torch.equal(found["loaded"], plain(ids).logits)
        assert torch.equal(found["generated"], model.generate(ids[:, :8], max_new_tokens=8, do_sample=False))


def test_plain_transformers_opens_it_weights_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny.llama()
    int8.quantize_(model)
    model.save_pretrained(tmp_path)
    int8_off = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, layer in calibrate.layers(model).items():
        assert torch.equal(int8_off.get_submodule(name).weight, layer.weight)


def test_state_dicts_are_those_of_quantlinear_both_ways():
    model, other = tiny.llama(), tiny.llama(seed=1)
    int8.quantize_(model)
    int8.quantize_(other)
    codes = {name: value for name, value in model.state_dict().items() if name.endswith("codes")}
    assert len(codes) == 28 and all(value.dtype == torch.uint8 for value in codes.values())
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(tiny.tokens()).logits, model(tiny.tokens()).logits)
        plain = tiny.llama(seed=2)
        rtn.quantize_(plain, bits=8, group_size=-1, symmetric=True)
        plain.load_state_dict(model.state_dict())
        assert all(
            torch.equal(a.weight, b.weight)
            for a, b in zip(calibrate.layers(plain).values(), calibrate.layers(model).values())
        )
        assert torch.equal(copy.deepcopy(model)(tiny.tokens()).logits, model(tiny.tokens()).logits)


def test_switching_changes_what_fits_inside_the_blocks_and_nothing_else():
    model = tiny.llama()
    rtn.quantize_(model, bits=8, group_size=-1, symmetric=True)  # codes down to -128
    parts = calibrate.layers(model)
    names = list(parts)
    other = rtn.rtn(torch.randn(64, 64), bits=4, group_size=32)
    model.set_submodule(names[0], QuantLinear(other))
    weights = {name: layer.weight for name, layer in calibrate.layers(model).items()}
    assert int8.integer_products_(model, threshold=1.5) == names[1:]
    for name, layer in calibrate.layers(model).items():
        assert isinstance(layer, Int8Linear) == (name != names[0]) and torch.equal(layer.weight, weights[name])
    assert all(layer.threshold == 1.5 for layer in list(calibrate.layers(model).values())[1:])
    assert int8.integer_products_(model, threshold=3.0) == names[1:]  # again, with another threshold
    assert blocks.head(model).weight is blocks.embeddings(model).weight


def test_switching_a_model_without_such_layers_is_an_error():
    model = tiny.llama()
    with pytest.raises(ValueError, match="none of the 0 quantized layers of LlamaForCausalLM"):
        int8.integer_products_(model)
    rtn.quantize_(model, bits=8, group_size=32)
    with pytest.raises(ValueError, match="none of the 28 quantized layers"):
        int8.integer_products_(model)
    with pytest.raises(ValueError, match=r"8 bits and scales \[4, 2\]"):
        Int8Linear(rtn.rtn(torch.randn(4, 32), bits=8, group_size=16, symmetric=True))


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"bits": 4}, r"bits=4, group_size=-1; LLM.int8\(\) multiplies 8-bit codes"),
        ({"group_size": 64}, "bits=8, group_size=64"),
        ({"threshold": -1.0}, "threshold=-1.0; a magnitude of 0 or more is allowed"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": "6"}, "threshold='6'"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(given_, message):
    model = tiny.llama()
    with pytest.raises(ValueError, match=message):
        int8.quantize_(model, **given_)
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())
