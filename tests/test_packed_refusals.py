"""What the packed engine refuses by name: values of another kind in config.json, and models that were taken apart."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from lib import runtime
from lib.checkpoints import values
from lib.evaluation.local import Local
from lib.export import plain
from lib.quantized import grid
from lib.quantizers import gptq, hqq, rtn
from lib.runtime import architecture, families
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


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3"])
def test_no_value_is_taken_that_the_class_of_a_family_refuses(family):
    made = getattr(tiny, family)().config
    config, taken = json.loads(made.to_json_string()), []
    architecture.read(config)
    keys = {field.name for field in dataclasses.fields(made)} | families.HARMLESS | {*families.ONLY}
    for key, value in itertools.product(sorted(keys), ["x", 1.5, 3, True, [], {}, None, ["a"]]):
        changed = config | {key: value}
        try:
            values.check(Path(), changed)
            architecture.read(changed)
        except ValueError:
            continue
        try:
            type(made).from_dict(copy.deepcopy(changed))
        except Exception:
            taken.append((key, value))
    assert not taken


LARGE = 3.4e38  # a float32 number that is infinity in bfloat16


def test_weights_above_the_largest_of_a_narrower_type_are_refused_by_name_or_kept(tmp_path, capsys):
    model = tiny.llama(num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = LARGE
    folder = saved(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight holds numbers above 3\.39e38"):
        runtime.load(folder)
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(
            ValueError, match=r"up_proj\.weight of .* holds 1 NaN or infinite values in torch\.b?float16"
        ):
            models.load(folder, dtype=dtype)
        with pytest.raises(ValueError, match=r"up_proj\.weight of the model holds 1 NaN or infinite"):
            Local(model, dtype=dtype)
    reloaded, _ = models.load(plain.save(model, model.tokenizer, tmp_path / "again"))
    assert float(reloaded.model.layers[0].mlp.up_proj.weight.max()) == torch.tensor(LARGE)  # as wide as it was
    for quantizer in (rtn, gptq, hqq):
        with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight holds 3\.4e\+38; up to 1\.701e\+38 can be rounded"):
            quantizer.quantize_(model, tiny.tokens(2, 8), bits=2, group_size=16)
    runtime.pack_(model)
    assert isinstance(model.model.layers[0].mlp.up_proj, torch.nn.Linear) and "up_proj first" in capsys.readouterr().out


@pytest.mark.parametrize("dtype, largest", [("float16", 32000.0), ("float32", 1.7e38), ("bfloat16", 1.6e38)])
@pytest.mark.parametrize("bits", [2, 8])
def test_the_largest_numbers_that_are_quantized_stay_finite(dtype, largest, bits):
    kind = getattr(torch, dtype)
    weight = torch.tensor([[-0.16 * largest, largest], [-largest, largest], [-largest, 0.0], [0.3, 0.2]]).to(kind)
    grid.check_size("the matrix", weight)
    for symmetric in (False, True):
        assert rtn.rtn(weight, bits=bits, group_size=-1, symmetric=symmetric).dense(kind).isfinite().all()
    with pytest.raises(ValueError, match=rf"the matrix holds .* must be finite in {dtype}; (load it as float32|check)"):
        grid.check_size("the matrix", weight * 1.1)
