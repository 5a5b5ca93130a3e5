"""Aiming at llama.cpp's types: the file is the tuned model, to the bit, and errs less than rounding to nearest."""

import json
import re

import gguf as package
import pytest
import torch

from lib.export import gguf, gguf_contents, gguf_tensors
from lib.models import capture
from lib.quantized import gguf_types
from lib.quantizers import aimed, aimed_scales, aimed_sizes, calibrate, on_grid
from tests import gguf_models, tiny

TOKENS = tiny.tokens(4, 24)
SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
WEIGHT = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)) * 0.05
INPUTS = torch.randn(600, 256, generator=torch.Generator().manual_seed(2)) @ torch.randn(256, 256) * 0.1


@pytest.mark.parametrize("kind", sorted(gguf_types.TYPES))
def test_gptq_changes_outputs_less_than_rounding(kind):
    moment = capture.second_moment(INPUTS)

    def error(matrix):
        return float(((matrix.dense() - WEIGHT) @ INPUTS.T).square().mean())

    assert error(on_grid.gptq(WEIGHT, moment, kind)) < 0.9 * error(on_grid.rtn(WEIGHT, kind, moment.diagonal()))


@pytest.mark.parametrize("kind", sorted(gguf_types.TYPES))
def test_offsets_start_at_the_codes_and_move_them_by_one_rank(kind):
    start = on_grid.gptq(WEIGHT, capture.second_moment(INPUTS), kind)
    layer = on_grid.GridWeight(WEIGHT, start)
    assert torch.equal(layer.quantized().data, start.data) and torch.equal(layer.dense.detach(), start.dense())
    gradient = torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(3))
    layer.step_(gradient, 0.5, 0.0)
    moved = layer.quantized().dense() - start.dense()
    assert torch.equal(layer.dense.detach(), layer.quantized().dense())
    changed = moved != 0
    assert 0.2 < changed.float().mean() < 1  # half of the codes are nearer than half a rank to the next
    assert torch.equal(moved[changed].sign(), -gradient[changed].sign())


@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.long), 3])
def test_the_file_is_the_tuned_model(tmp_path, steps):
    """Every matrix of a type of its own, heads tied; q and k change their rows' order."""
    model = gguf_models.build("llama", **SMALL)
    wanted = list(aimed.matrices(model))
    kinds = [kind for kind in gguf_types.TYPES if gguf_types.held(kind, 64)]
    wide = [kind for kind in gguf_types.TYPES if kind.endswith("K")]
    plan = {
        name: (wide if name.endswith("down_proj") else kinds)[place % (5 if name.endswith("down_proj") else len(kinds))]
        for place, name in enumerate(wanted)
    }
    found = aimed.quantize_(model, TOKENS, types=plan, steps=steps, state=tmp_path / "state")
    assert {name: matrix.kind for name, matrix in found.items()} == plan
    folder = gguf.export(model, model.tokenizer, tmp_path / "modèle", aimed=found)
    said = gguf_contents.compare(folder / gguf.FILE, model)
    assert said["exact"] == said["tensors"] and not said["missing"] + said["left_over"]
    assert set(json.loads((folder / "manifest.json").read_text())["types"]) == {"F32", *plan.values()}
    again = gguf_models.build("llama", **SMALL)
    same = aimed.quantize_(again, TOKENS, types=plan, steps=steps, state=tmp_path / "state")  # resumed
    assert all(torch.equal(same[name].data, matrix.data) for name, matrix in found.items())


@pytest.mark.long
def test_signround_brings_outputs_nearer():
    def loss(steps):
        model = gguf_models.build("llama", num_hidden_layers=2)
        with torch.no_grad():
            before = model(TOKENS).logits
            aimed.quantize_(model, TOKENS, types="Q2_0", steps=steps)
            return float((model(TOKENS).logits - before).square().mean())

    assert loss(12) < loss(0)


def test_steps_are_trained_and_stay_on_the_grid(tmp_path):
    model = gguf_models.build("llama")
    names = list(calibrate.layers(model))
    plan = {name: aimed_scales.TYPES[place % 4] for place, name in enumerate(names)}
    original = gguf_models.build("llama")
    found = aimed.quantize_(model, TOKENS, types=plan)
    for matrix in found.values():
        turned = aimed_scales.as_quantized(matrix)
        assert torch.equal(turned.dense(), matrix.dense())
        assert torch.equal(aimed_scales.as_blocks(turned, matrix.kind).dense(), matrix.dense())
    tuned = aimed_scales.tune_(model, TOKENS, original, found, steps=4, learning_rate=0.01)
    assert all(not torch.equal(tuned[name].data, found[name].data) for name in names)
    before, after = ({name: aimed_scales.as_quantized(each[name]) for name in names} for each in (found, tuned))
    assert all(torch.equal(before[name].codes, after[name].codes) for name in names)
    gguf.plan(model, aimed=tuned)  # the model has them
    with pytest.raises(ValueError, match="no layer has one of the types"):
        aimed_scales.tune_(model, TOKENS, original, {}, steps=1)


@pytest.mark.long
def test_types_fit_a_size_and_more_room_costs_less(tmp_path):
    model = gguf_models.build("llama", **SMALL)
    errors = aimed_sizes.errors(model, TOKENS)
    assert all(table["Q8_0"] < table["Q4_0"] < table["Q2_0"] for table in errors.values())
    sizes, costs = [], []
    for megabytes in (0.085, 0.11, 0.2):
        plan = aimed_sizes.fit(model, model.tokenizer, errors, megabytes=megabytes)
        aimed_model = gguf_models.build("llama", **SMALL)
        found = aimed.quantize_(aimed_model, TOKENS, types=plan)
        folder = gguf.export(aimed_model, model.tokenizer, tmp_path / str(megabytes), aimed=found)
        sizes.append((folder / gguf.FILE).stat().st_size)
        costs.append(sum(errors[name][kind] for name, kind in plan.items()))
        assert sizes[-1] <= megabytes * 1e6
    assert costs == sorted(costs, reverse=True) and sizes == sorted(sizes)
    with pytest.raises(ValueError, match=r"megabytes=0.01 is too small; the smallest types make 0\.\d+"):
        aimed_sizes.fit(model, model.tokenizer, errors, megabytes=0.01)


@pytest.mark.parametrize("rows", [1, 256, 300, 512, 49152])
def test_a_sample_of_rows_stands_for_all(rows):
    weights = torch.rand(rows, 2, generator=torch.Generator().manual_seed(rows)) ** 8
    picked, shares = aimed_sizes._sample(weights)
    assert sum(len(each) * share for each, share in zip(picked, shares, strict=True)) == pytest.approx(rows)
    assert len(set(torch.cat(picked).tolist())) == sum(map(len, picked)) <= 1024
    assert set(weights.sum(1).topk(min(rows, 256)).indices.tolist()) <= set(torch.cat(picked).tolist())
    estimate = sum(float(weights[each].sum()) * share for each, share in zip(picked, shares))
    assert estimate == pytest.approx(float(weights.sum()), rel=0.15)


def test_fisher_information_is_that_of_the_formula():
    model = gguf_models.build("llama", num_hidden_layers=1)
    found = aimed_sizes.fisher(model, TOKENS[:1], seed=0)
    name = "model.layers.0.mlp.up_proj"
    logits = model(TOKENS[:1]).logits[0]
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    loss = -logits.log_softmax(-1)[torch.arange(len(drawn)), drawn].sum()
    (wanted,) = torch.autograd.grad(loss, [model.get_submodule(name).weight])
    assert torch.allclose(found[name], wanted.square() / len(drawn), rtol=1e-3)


@pytest.mark.parametrize(
    ("types", "said"),
    [
        ("Q4_K", r"Q4_K for model\.embed_tokens with 64 columns; its blocks are 256 long; choose one of Q2_0, Q4_0"),
        ("Q4", "there is no type 'Q4' to aim at"),
        ({"model.layers.9.mlp.up_proj": "Q4_0"}, r"types name 'model\.layers\.9"),
    ],
)
def test_wrong_types_are_told_before_the_work(types, said):
    with pytest.raises(ValueError, match=said):
        aimed.quantize_(gguf_models.build("llama"), TOKENS, types=types)


def test_a_model_changed_since_and_a_packed_one_are_refused():
    model = gguf_models.build("llama")
    name = "model.layers.0.mlp.up_proj"
    found = aimed.quantize_(model, TOKENS, types={name: "Q4_0"})
    with torch.no_grad():
        model.get_submodule(name).weight.add_(1)
    with pytest.raises(ValueError, match=re.escape(f"{name} holds other weights than its Q4_0 blocks")):
        gguf.plan(model, aimed=found)
    with pytest.raises(ValueError, match="is quantized already"):
        aimed.quantize_(gguf_models.build("llama", bits=4), TOKENS, types="Q4_0")


def test_the_package_is_taught_the_type_that_it_lacks():
    number = gguf_tensors.number("Q2_0")
    assert int(number) == 42 and package.GGMLQuantizationType(42) is number
    assert package.GGML_QUANT_SIZES[number] == (64, 18)
