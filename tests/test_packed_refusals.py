"""What the packed engine refuses by name: values of another kind in config.json, and models that were taken apart."""

import json

import pytest
import torch

from lib import runtime
from lib.sources import models
from tests import tiny

WRONG = [("architectures", 1), ("architectures", [1]), ("model_type", []), ("hidden_act", {}), ("is_causal", 1),
         ("quantization_config", "int8"), ("quantization_config", 8), ("pad_token_id", True)]  # fmt: skip


def saved(model, folder, drop=(), **changed):
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in drop} | changed
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("key, value", WRONG)
def test_a_value_of_another_kind_is_refused(key, value, tmp_path):
    folder = saved(tiny.qwen2(), tmp_path / "model", **{key: value})
    with pytest.raises(ValueError, match=key.replace("_type", " type").replace("hidden_act", "activation")):
        runtime.load(folder)


@pytest.mark.parametrize("value", [True, 3, "linear"])
def test_scaling_that_is_no_settings_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match="rope_scaling"):
        runtime.load(saved(tiny.gemma3(), tmp_path / "model", rope_scaling=value))


@pytest.mark.parametrize("load", [models.load, runtime.load])
def test_the_padding_token_of_the_class_must_be_in_the_vocabulary(load, tmp_path):
    folder = saved(tiny.phi3(), tmp_path / "model", drop=["pad_token_id"])  # transformers takes 32000
    with pytest.raises((ValueError, AssertionError), match=r"(?i)pad"):
        load(folder)


def doubled(part):
    own = part.forward
    part.forward = lambda *args, **more: 2 * own(*args, **more)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda model: doubled(model.model.layers[1]), r"forward pass of its own in model\.layers\.1"),
        (lambda model: doubled(model.model.layers[1].mlp), r"forward pass of its own in model\.layers\.1\.mlp"),
        (lambda model: model.model.layers[0].register_forward_hook(lambda *_: None), r"hook on model\.layers\.0"),
        (lambda model: model.model.register_forward_hook(lambda *_: None), "hook on model"),
        (lambda model: setattr(model.model.layers[1], "mlp", torch.nn.Identity()), r"block 1 without mlp\.down_proj"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(change, said):
    model = tiny.llama()
    change(model)
    runtime.pack_(model)
    with pytest.raises(ValueError, match=said):
        runtime.Session(model)
