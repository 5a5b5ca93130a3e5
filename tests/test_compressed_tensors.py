"""Packed checkpoints: the bits on disk, our loader, plain transformers, and what is refused."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lib import files
from lib.export import compressed_tensors, plain, stored_tensors
from lib.quantized.integers import integers_
from lib.quantizers import embedding
from tests import tiny
from tests.packed import quantize_

READ = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
tokens = load_file(sys.argv[1])["tokens"]
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        save_file({"logits": model(tokens).logits}, folder + "/logits.safetensors")
"""


def logits(model, tokens=None):
    with torch.no_grad():
        return model(tiny.tokens() if tokens is None else tokens).logits


@pytest.fixture
def folder(tmp_path):
    """A packed tiny Llama."""
    return compressed_tensors.save(quantize_(tiny.llama()), tiny.tokenizer(), tmp_path / "packed")


@pytest.mark.usefixtures("warm")
def test_a_fresh_process_with_plain_transformers_gets_equal_logits(tmp_path):
    cases = {
        "8 bits": quantize_(tiny.llama(), lambda name: (8, 32, False)),
        "4 bits, a group a row": quantize_(tiny.qwen2(), lambda name: (4, -1, False)),
        "3 bits, symmetric": quantize_(tiny.phi(), lambda name: (3, 64, True)),
        "2 bits, float32": quantize_(tiny.llama(), lambda name: (2, 16, False), torch.float32),
        "mixed, symmetric": quantize_(tiny.gemma2(), lambda name: (8 if "mlp" in name else 5, 32, True)),
        "4 bits, embedding too, tied": quantize_(tiny.llama()),
        "3 bits, embedding too, tied and scaled": quantize_(tiny.gemma2(), lambda name: (3, 32, False)),
        "4 bits, embedding and head too, bias": quantize_(tiny.phi()),
        "2 bits, half": quantize_(tiny.llama(), lambda name: (2, 32, False, "half")),
        "7 bits, half, float32": quantize_(tiny.qwen2(), lambda name: (7, -1, False, "half"), torch.float32),
        "3 bits, balanced, embedding too, tied": quantize_(tiny.llama(), lambda name: (3, 32, False, "balanced")),
    }
    expected = {}
    for name, model in cases.items():
        if "embedding" in name:
            levels = "balanced" if "balanced" in name else "integer"
            embedding.quantize_(model, bits=int(name[0]), group_size=32, levels=levels)
        expected[name] = logits(model)
        integers_(model)  # half-integer and balanced levels: one bit more, equal values
    save_file({"tokens": tiny.tokens()}, tmp_path / "tokens")
    folders = [compressed_tensors.save(model, model.tokenizer, tmp_path / name) for name, model in cases.items()]
    subprocess.run([sys.executable, "-c", READ, tmp_path / "tokens", *folders], check=True, cwd=files.ROOT)
    for name, model in cases.items():
        assert torch.equal(load_file(tmp_path / name / "logits.safetensors")["logits"], expected[name]), name
        assert torch.equal(logits(model), expected[name])


@pytest.mark.parametrize("bits", range(2, 9))
def test_our_loader_gives_the_same_codes_and_logits(tmp_path, bits):
    model = quantize_(tiny.llama(), lambda name: (bits, 32, bits % 2 == 0))
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, tokenizer = compressed_tensors.load(tmp_path / "it")
    before, after = stored_tensors.layers(model), stored_tensors.layers(again)
    assert before.keys() == after.keys() and len(after) == 28
    for name in before:
        assert torch.equal(before[name].codes, after[name].codes)
        assert before[name].quantized[3:] == after[name].quantized[3:]
    assert torch.equal(logits(again), logits(model))
    assert again.dtype == torch.bfloat16 and not again.training and tokenizer.decode([104, 105]) == "hi"
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "phi", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_families_and_dtypes(tmp_path, family, dtype):
    from transformers import AutoModelForCausalLM

    model = quantize_(getattr(tiny, family)(), lambda name: (3, 32, False), dtype)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    assert torch.equal(logits(compressed_tensors.load(tmp_path / "it")[0]), logits(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "it")), logits(model))


def test_config_names_one_group_per_grid():
    def config(choose):
        return stored_tensors.quantization_config(quantize_(tiny.llama(), choose))

    one = config(lambda name: (4, 64, False))  # 64 columns are a whole row of all layers but down_proj
    assert [group["targets"] for group in one["config_groups"].values()] == [["Linear"]]
    assert one["config_groups"]["group_0"]["weights"]["group_size"] == 64
    assert one["ignore"] == ["lm_head"] and one["dequantize"] is True
    rows = config(lambda name: (4, -1, True))["config_groups"]["group_0"]["weights"]
    assert rows == {"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False, "strategy": "channel"}
    two = config(lambda name: (8 if "down_proj" in name else 3, 32, False))
    exception = r"re:model.layers.(0|1|2|3).mlp.down_proj$"
    assert [group["targets"] for group in two["config_groups"].values()] == [["Linear"], [exception]]
    assert "dequantize" not in two


def test_layers_with_different_asymmetric_grids_are_read_by_our_loader_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    model = quantize_(tiny.llama(), lambda name: (8 if "0." in name else 3, 32, "mlp" in name))
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    assert torch.equal(logits(compressed_tensors.load(tmp_path / "it")[0]), logits(model))
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path / "it")
    embedding.quantize_(model, bits=6, group_size=32)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    assert torch.equal(logits(compressed_tensors.load(tmp_path / "it")[0]), logits(model))
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path / "it")


def test_the_file_holds_packed_tensors_and_tied_weights_once(folder):
    stored = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in stored and not [key for key in stored if key.endswith(("codes", "q_proj.weight"))]
    scale = stored["model.layers.0.self_attn.q_proj.weight_scale"]
    assert scale.dtype == stored["model.embed_tokens.weight"].dtype == torch.bfloat16 and scale.shape == (64, 2)
    assert plain.size(compressed_tensors.load(folder)[0]) == sum(tensor.nbytes for tensor in stored.values())


def test_plain_save_pretrained_writes_the_packed_form_of_a_marked_model(tmp_path):
    from transformers import AutoModelForCausalLM

    model = compressed_tensors.mark(quantize_(tiny.llama()))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)
    fresh = compressed_tensors.mark(quantize_(tiny.llama(seed=1)))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh), expected) and torch.equal(logits(copy.deepcopy(model)), expected)


def test_a_marked_model_whose_layers_are_plain_again_saves_plainly(tmp_path):
    model = compressed_tensors.mark(quantize_(tiny.llama()))
    model.save_pretrained(tmp_path)
    for name, layer in stored_tensors.layers(model).items():
        dense = nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=torch.bfloat16)
        dense.weight.data = layer.weight.to(torch.bfloat16)
        model.set_submodule(name, dense)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


def test_generate_gradients_and_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = compressed_tensors.mark(quantize_(tiny.llama(), dtype=torch.float32))
    tokens = tiny.tokens()
    states = model.get_input_embeddings()(tokens).detach().requires_grad_()
    model(inputs_embeds=states).logits.square().sum().backward()
    assert states.grad.isfinite().all() and states.grad.abs().sum() > 0
    some = {"input_ids": tokens[:1, :4], "attention_mask": torch.ones(1, 4), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**some, use_cache=True), model.generate(**some, use_cache=False))
    settings = TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_steps=1)
    codes = model.model.layers[0].mlp.up_proj.codes.clone()
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    before = model.model.norm.weight.detach().clone()
    Trainer(model, settings, train_dataset=rows).train()
    assert not torch.equal(model.model.norm.weight, before)
    assert torch.equal(model.model.layers[0].mlp.up_proj.codes, codes)
    assert torch.equal(logits(compressed_tensors_of(tmp_path / "checkpoint-1")), logits(model.eval()))


def compressed_tensors_of(checkpoint):
    tiny.tokenizer().save_pretrained(checkpoint)
    for path in checkpoint.iterdir():  # the trainer's own state is pickled
        if path.suffix in (".bin", ".pt", ".pth"):
            path.unlink()
    return compressed_tensors.load(checkpoint)[0]


def test_models_load_finds_packed_folders(folder):
    from lib.sources import models

    model, _ = models.load(str(folder), dtype="float32")
    assert len(stored_tensors.layers(model)) == 28 and model.dtype == torch.float32


def test_large_models_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "SHARD", "30KB")
    model = quantize_(tiny.llama())
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    assert len(list((tmp_path / "it").glob("*.safetensors"))) > 1
    assert torch.equal(logits(compressed_tensors.load(tmp_path / "it")[0]), logits(model))


def test_a_model_without_quantized_layers_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no quantized layers.*export\.plain\.save"):
        compressed_tensors.save(tiny.llama(), tiny.tokenizer(), tmp_path / "it")
    assert not list(tmp_path.iterdir())
