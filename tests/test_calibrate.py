"""The walk over the blocks against a direct forward pass, on every family; resuming; failures."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lib.models import capture
from lib.models.blocks import blocks, linears
from lib.quantized.linear import QuantLinear
from lib.quantizers import METHODS, by_name, calibrate, embedding, gptq, rtn
from lib.sources import texts
from tests import tiny

FAMILIES = [tiny.llama, tiny.qwen2, tiny.qwen3, tiny.mistral, tiny.phi, tiny.gemma2]
GRID = {"bits": 4, "group_size": 32}


def tokens(count=3, length=24, seed=0):
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(seed))


def same(first, second):
    def equal(a, b):
        return a is b if a is None else torch.equal(a, b)

    return first.keys() == second.keys() and all(
        equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3])
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_captured_calls_run_the_blocks_as_the_model_does(family):
    model, ids = family(), tokens()
    captured = capture.capture(model, ids)
    hidden, seen = captured.hidden, []
    for block in blocks(model):
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    model(input_ids=ids)
    for index, (block, call) in enumerate(zip(blocks(model), captured.calls)):
        hidden = capture.run_block(block, hidden, call)
        assert torch.allclose(hidden, seen[index], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_layer_sees_what_the_compressed_layers_before_it_produce(family):
    """Hessians handed out during the walk equal those of the finished model: nothing before a layer changes later."""
    model, ids, handed, together = family(), tokens(), {}, []

    def visit(names, weight, hessian):
        handed.update(dict.fromkeys(names, hessian))
        together.append([name.rpartition(".")[2] for name in names])
        return gptq.gptq(weight, hessian, bits=3, group_size=32)

    done = calibrate.sequential(model, ids, visit)
    assert together[0][:3] == ["q_proj", "k_proj", "v_proj"]  # and the MLP's input too, where Phi runs both in parallel
    assert list(done) == list(calibrate.layers(model)) and all(
        isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values()
    )
    for name, layer in calibrate.layers(model).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    seen = {}
    model(input_ids=ids)
    for name, hessian in handed.items():
        rows = seen[name].reshape(-1, seen[name].shape[-1]).double()
        expected = 2 * rows.T @ rows / len(rows)
        assert (hessian.double() - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [40, 400, 800])
def test_second_moment_equals_float64(dtype, columns):
    given = torch.randn(2, 50, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = given.reshape(-1, columns).double()
    before = torch.backends.mkldnn.matmul.fp32_precision
    found, expected = capture.second_moment(given), 2 * rows.T @ rows / 100
    assert found.dtype == torch.float32 and torch.equal(found, found.T)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_bias_and_tied_head_survive():
    model = tiny.qwen2()
    bias = model.model.layers[0].self_attn.q_proj.bias.clone()
    gptq.quantize_(model, tokens(), **GRID)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.bias, bias)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_rtn_rounds_every_layer_and_forwards_the_grid():
    model = tiny.llama()
    original = copy.deepcopy(model)
    done = rtn.quantize_(model, **GRID, symmetric=True)
    for name, layer in calibrate.layers(model).items():
        expected = rtn.rtn(original.get_submodule(name).weight, **GRID, symmetric=True)
        assert torch.equal(layer.codes, expected.codes) and layer.zero_point is None and layer.bits == 4
    assert same(done, {name: layer.quantized for name, layer in calibrate.layers(model).items()})


def test_gptq_loses_less_than_rounding_on_the_calibration_text():
    ids, losses = tokens(8, 64), {}
    for name in ("rtn", "gptq"):
        model = tiny.llama()
        with torch.no_grad():
            expected = model(input_ids=ids).logits
            by_name(name)(model, ids, bits=3, group_size=32)
            losses[name] = (model(input_ids=ids).logits - expected).square().mean()
    assert losses["gptq"] < losses["rtn"]


def test_group_size_is_checked_before_the_work():
    with pytest.raises(
        ValueError, match=r"group_size=128 does not divide 64 columns of model.layers.0.self_attn.q_proj"
    ):
        gptq.quantize_(tiny.llama(), tokens(), bits=4, group_size=128)
    with pytest.raises(ValueError, match=r"bits=1 for model\.layers\.0"):
        rtn.quantize_(tiny.llama(), bits=1, group_size=32)


def test_quantizing_twice_is_refused():
    model = tiny.llama()
    rtn.quantize_(model, **GRID)
    with pytest.raises(ValueError, match="is a QuantLinear already; load the original model"):
        gptq.quantize_(model, tokens(), **GRID)


@pytest.mark.parametrize("method", ["gptq", "signround"])
def test_a_layer_that_never_runs_is_an_error_and_the_remedy_works(method):
    model, block = tiny.llama(), r"model.layers.1" if method == "gptq" else "the block"
    blocks(model)[1].unused = nn.Linear(64, 64)
    named = rf"{block} never ran unused; .*; use a method that needs no calibration \(rtn, hqq\)"
    with pytest.raises(ValueError, match=named):
        by_name(method)(model, tokens(), **GRID)
    model = tiny.llama()
    blocks(model)[1].unused = nn.Linear(64, 64)
    assert "model.layers.1.unused" in rtn.quantize_(model, **GRID)


SEARCHING = {name: by_name(name) for name in METHODS} | {"embedding": embedding.quantize_}
SEARCHING = {name: each for name, each in SEARCHING.items() if "candidates" in inspect.signature(each).parameters}


@pytest.mark.parametrize("candidates", [-1, 0, 2.5])
@pytest.mark.parametrize("method", SEARCHING)
def test_candidates_are_checked_before_the_work_wherever_they_are_taken(method, candidates, monkeypatch):
    assert len(SEARCHING) >= 8
    monkeypatch.setattr(texts, "tokens", lambda *_: pytest.fail("the work had begun"))
    with pytest.raises(ValueError, match=rf"candidates={candidates} ranges to try .*are allowed; 8 find"):
        SEARCHING[method](tiny.llama(), tokens(), **GRID, candidates=candidates)


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match=r"'gtpq' is unknown; choose one of .*gptq, .*; did you mean 'gptq'"):
        by_name("gtpq")


def test_hooks_are_gone_afterwards():
    model = tiny.llama()
    gptq.quantize_(model, tokens(), **GRID)
    assert all("forward" not in block.__dict__ for block in blocks(model))
    assert not any(layer._forward_pre_hooks for layer in linears(model).values())


def test_a_visit_that_returns_none_changes_nothing():
    model, ids, names = tiny.llama(), tokens(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert calibrate.sequential(model, ids, lambda some, *_: names.extend(some)) == {}
    assert sorted(names) == sorted(calibrate.layers(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_layers_visited_together_get_what_they_would_get_alone():
    ids, handed = tokens(), {}
    model, original = tiny.qwen2(), tiny.qwen2()
    done = gptq.quantize_(model, ids, **GRID)
    calibrate.sequential(original, ids, lambda names, _, hessian: handed.update(dict.fromkeys(names, hessian)))
    for kind in ("q_proj", "k_proj", "v_proj"):  # of the first block, whose inputs nothing has changed
        name = f"model.layers.0.self_attn.{kind}"
        alone = gptq.gptq(original.get_submodule(name).weight, handed[name], **GRID)
        assert (alone.codes != done[name].codes).float().mean() < 0.005 and torch.equal(alone.scale, done[name].scale)


def test_memory_is_checked_before_the_work(monkeypatch):
    model, ids = tiny.llama(), tokens(8, 32)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 10**5}))
    with pytest.raises(MemoryError, match=r"8 windows of 32 tokens need about .*; use about 1 windows or fewer"):
        gptq.quantize_(model, ids, **GRID)
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())


@pytest.mark.parametrize("method", [rtn, gptq])
def test_a_quantized_model_keeps_nothing_of_the_file_that_it_came_from(method, tmp_path):
    folder = tiny.save(tmp_path / "model", tiny.llama(tie_word_embeddings=True).bfloat16())
    model = AutoModelForCausalLM.from_pretrained(folder)
    maps = Path("/proc/self/maps")
    if not maps.exists() or str(folder) not in maps.read_text():
        pytest.skip("the weights are in memory of their own here")
    before = model.model.embed_tokens.weight.clone()
    method.quantize_(model, tokens(), **GRID)
    assert str(folder) not in maps.read_text()  # one tensor holds the pages of the whole file
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.model.embed_tokens.weight, before)
