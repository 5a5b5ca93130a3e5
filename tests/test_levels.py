"""Half-integer and balanced levels: what they gain, what they cost, and who reads them."""

import copy

import numpy as np
import pytest
import torch

from lib import quantizers, runtime
from lib.export import compressed_tensors, packing, size, stored_tensors
from lib.metrics import count
from lib.models import blocks
from lib.quantized import grid, zero_points
from lib.quantized.integers import integer, integers_
from lib.quantized.levels import LEVELS, check
from lib.quantizers import best, calibrate, clip, embedding, learned_zero_points
from tests import packed, tiny

GAUSSIAN = torch.randn(48, 1024, generator=torch.Generator().manual_seed(0))  # 768 groups of 64


def searched(weights, bits, zeros):
    """Least mean squared error of groups [n, 64] on grids with one of `zeros`: every zero, many scales, each refit."""
    top, least = 2**bits - 1, np.full(len(weights), np.inf)
    for zero in zeros:
        for share in np.linspace(0.3, 1, 30):
            scale = 2 * share * np.abs(weights).max(1, keepdims=True) / top
            for _ in range(2):
                values = np.clip(np.rint(weights / scale + zero), 0, top) - zero
                scale = (values * weights).sum(1, keepdims=True) / (values * values).sum(1, keepdims=True)
            values = np.clip(np.rint(weights / scale + zero), 0, top) - zero
            least = np.minimum(least, np.square(values * scale - weights).mean(1))
    return least.mean()


def test_on_gaussian_groups_halves_err_an_eighth_less_than_integers_at_2_bits():
    weights = GAUSSIAN.double().numpy().reshape(-1, 64)
    zeros = {"integer": (1, 2), "half": (1, 1.5, 2, 2.5), "balanced": (1.5,)}
    exact = {levels: searched(weights, 2, some) for levels, some in zeros.items()}
    assert 0.86 < exact["half"] / exact["integer"] < 0.89 and 0.90 < exact["balanced"] / exact["integer"] < 0.94
    assert abs(searched(weights, 2, (0.5, *zeros["half"])) / exact["half"] - 1) < 1e-3  # what storing leaves out
    for levels, least in exact.items():
        scale, zero = grid.choose(GAUSSIAN, bits=2, group_size=64, levels=levels, candidates=8)
        codes = grid.quantize(GAUSSIAN, scale, zero, bits=2)
        chosen = grid.dequantize(codes, scale, zero, bits=2)
        # integers have the zero point of minimum and maximum here, which is the worse one in every tenth group
        assert 0.999 < (chosen - GAUSSIAN).square().mean() / least < (1.04 if levels == "integer" else 1.005)
        clipped = clip.clip(GAUSSIAN, torch.eye(1024), bits=2, group_size=64, levels=levels).dense()
        assert 0.999 < (clipped - GAUSSIAN).square().mean() / least < 1.005


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_points_take_the_bits_of_a_code_and_come_back(bits):
    first = torch.arange(2**bits)[None].to(torch.uint8)
    scale = torch.ones(1, 2**bits, dtype=torch.bfloat16)
    zero = zero_points.restored(first, scale, bits=bits, levels="half")
    expected = [(2 ** (bits - 1) + c) / 2 for c in range(2**bits)]
    assert zero[0].tolist() == expected and zero.dtype == torch.float16
    assert torch.equal(zero_points.stored(zero, bits=bits, levels="half"), first)
    halves = packed.matrix(GAUSSIAN[:16, :128], bits, 64, levels="half")
    balanced = packed.matrix(GAUSSIAN[:16, :128], bits, 64, levels="balanced")
    whole, symmetric = (packed.matrix(GAUSSIAN[:16, :128], bits, 64, kind) for kind in (False, True))
    for matrix, alike in ((halves, whole), (balanced, symmetric)):
        tensors = packing.pack(matrix)
        back = packing.unpack(tensors, bits=bits, groups=2, symmetric=False, levels=matrix.levels, name="it")
        assert blocks.equal(back, matrix) and packing.size(matrix) == packing.size(alike)
        assert sum(tensor.nbytes for tensor in tensors.values()) == packing.size(matrix)
        planned = packing.planned(16, 128, bits=bits, group_size=64, levels=matrix.levels)
        assert packing.size(planned) == packing.size(matrix)
        if bits == 8:
            with pytest.raises(ValueError, match=r"of it with 8 bits need integers of 9"):
                integer(matrix, "it")
        else:
            assert torch.equal(integer(matrix).dense(), matrix.dense()) and integer(matrix).bits == bits + 1
    assert integer(whole) is whole


def test_ranges_beyond_the_zero_points_that_there_are_get_a_wider_scale():
    weight = torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [-1.0], [1.0], [0.0]])
    weight[2, 0] = -0.01
    for levels, bits in ((levels, bits) for levels in ("half", "balanced") for bits in (2, 4, 8)):
        scale, zero = grid.choose(weight, bits=bits, group_size=64, levels=levels)
        values = grid.dequantize(grid.quantize(weight, scale, zero, bits=bits), scale, zero, bits=bits)
        # half a step of rounding, a bit of the bfloat16 scale, and where zero may lie
        assert ((values - weight).abs() <= scale.float() * (0.76 + 2**bits * 2**-8)).all(), (levels, bits)
        assert values[3].abs().max() < 1e-37  # a group of zeros


def made(count=2):
    return tiny.llama(num_hidden_layers=count)


METHODS = {
    "rtn": {"candidates": 4}, "clip": {}, "hqq": {}, "gptq": {}, "gptaq": {}, "awq": {}, "corrected": {},
    "rotation": {}, "signround": {"steps": 2}, "gptq_signround": {"steps": 2},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_chooses_ranges_takes_them(method, tmp_path):
    quantize_, tokens = quantizers.by_name(method), tiny.tokens(2, 16)
    options = {"bits": 2, "group_size": 32, **METHODS[method]}
    with pytest.raises(
        ValueError, match=r"levels='quarter' of a grid; allowed are 'integer': .*'half': .*'balanced': "
    ):
        quantize_(made(1), tokens, **options, levels="quarter")
    model = made(1)
    done = quantize_(model, tokens, **options, levels="half", state=tmp_path / "state")
    layers = calibrate.layers(model)
    assert {layer.levels for layer in layers.values()} == {"half"} and done.keys() == layers.keys()
    zeros = torch.cat([matrix.zero_point.flatten() for matrix in done.values()])
    assert set(zeros.unique().tolist()) <= {1.0, 1.5, 2.0, 2.5} and (zeros == 1.5).float().mean() > 0.2
    again = made(1)
    resumed = quantize_(again, tokens, **options, levels="half", state=tmp_path / "state")
    assert all(blocks.equal(resumed[name], done[name]) for name in done)
    if method in ("rtn", "clip"):
        before, whole = calibrate.layers(made(1)), quantize_(made(1), tokens, **options)
        lost = [
            sum((matrix.dense() - before[name].weight).square().sum() for name, matrix in each.items())
            for each in (done, whole)
        ]
        assert lost[0] < 0.95 * lost[1]
    if method == "hqq":
        with pytest.raises(ValueError, match="'balanced' have no zero points, which are all that HQQ chooses"):
            quantize_(made(1), tokens, **options, levels="balanced")
    else:
        done = quantize_(made(1), tokens, **options, levels="balanced")
        assert all((matrix.zero_point == 1.5).all() for matrix in done.values())


def test_the_recipe_and_zero_points_that_are_learned(tmp_path):
    model, original, tokens = made(), made(), tiny.tokens(2, 16)
    found = {}
    for levels in LEVELS:
        model = made()
        found[levels] = best.quantize_(model, tokens, megabytes=0.062, steps=1, group_size=32, levels=levels)
        assert {matrix.levels for matrix in found[levels].values()} == {levels}
        predicted = size.predict(model)
        compressed_tensors.save(model, tiny.tokenizer(), tmp_path / levels)
        assert count.artifact_bytes(tmp_path / levels) == predicted <= 62_000
    model = made()
    quantizers.by_name("rtn")(model, bits=3, group_size=32, levels="half")
    learned_zero_points.tune_(model, tokens, original, steps=2, learning_rate=0.3)
    zeros = torch.cat([layer.zero_point.flatten() for layer in calibrate.layers(model).values()])
    assert ((2 * zeros).frac() == 0).all() and zeros.min() >= 2 and zeros.max() <= 5.5
    quantizers.by_name("rtn")(original, bits=3, group_size=32, levels="balanced")
    with pytest.raises(ValueError, match=r"none of the 14 quantized layers .* has zero points"):
        learned_zero_points.tune_(original, tokens, made(), steps=1)


@pytest.mark.parametrize("levels", ["half", "balanced"])
def test_a_saved_model_is_read_here_and_by_the_packed_engine_and_refused_elsewhere(levels, tmp_path):
    from transformers import AutoModelForCausalLM

    model = packed.quantize_(tiny.llama(), lambda name: (2, 32, False, levels))
    embedding.quantize_(model, bits=4, group_size=32, levels=levels)
    with torch.no_grad():
        wanted = model(tiny.tokens(1, 20)).logits
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, _ = compressed_tensors.load(tmp_path / "it")
    before, after = stored_tensors.layers(model), stored_tensors.layers(again)
    assert all(blocks.equal(before[name].quantized, after[name].quantized) for name in before)
    with torch.no_grad():
        assert torch.equal(again(tiny.tokens(1, 20)).logits, wanted)
    moved = copy.deepcopy(again).to(torch.bfloat16)  # the grids keep their types
    moved = stored_tensors.layers(moved.to(torch.float16))
    assert all(blocks.equal(before[name].quantized, moved[name].quantized) for name in before)
    with pytest.raises(Exception, match=r"half_integer|balanced"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "it")
    loaded = runtime.load(tmp_path / "it")
    turned = runtime.Session(loaded).extend(tiny.tokens(1, 20)[0])
    assert torch.equal(turned, runtime.Session(runtime.pack_(again)).extend(tiny.tokens(1, 20)[0]))
    assert (turned - wanted[0]).norm() < 0.05 * wanted.norm()
    integers_(model)
    assert blocks.tied(model) and {part.levels for part in stored_tensors.layers(model).values()} == {"integer"}
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "integers")
    weights = [count.bits_per_weight(tmp_path / name, model) for name in ("it", "integers")]
    assert 0.8 < weights[1] - weights[0] < 1.2  # a bit more a weight
    assert "levels" not in repr(model) and f"{4 + 1}" in repr(blocks.head(model))


def test_levels_that_contradict_other_arguments_are_refused():
    with pytest.raises(ValueError, match=r"levels='half' with symmetric=True"):
        check("half", True)
    with pytest.raises(ValueError, match=r"levels=None of a grid; .*choose one of them"):
        check(None)
    with pytest.raises(ValueError, match=r"levels='balanced' with symmetric=True"):
        quantizers.by_name("gptq")(made(), tiny.tokens(2, 16), bits=2, group_size=32, symmetric=True, levels="balanced")
    model = packed.quantize_(made(), lambda name: (8, 32, False, "half"))
    names = list(calibrate.layers(model))
    with pytest.raises(ValueError, match=f"of {names[0]} with 8 bits"):
        integers_(model)
    assert {layer.bits for layer in calibrate.layers(model).values()} == {8}
