"""Absmax against the textbook's formula in float64, per tensor, per row and per group; its failures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.export import compressed_tensors
from lib.quantized.linear import QuantLinear
from lib.quantizers import absmax as module
from lib.quantizers import calibrate
from lib.quantizers.absmax import absmax
from tests import tiny


def matrix(rows=6, columns=64, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def parts(weight, group_size):
    """The weights that share a grid, one line each: the whole matrix, rows, or groups."""
    return weight.reshape({0: 1, -1: len(weight)}.get(group_size, -1), -1 if group_size < 1 else group_size).double()


def textbook(weight, bits, group_size):
    """round(top x / max|x|) and the values it stands for, in float64 with exact scales."""
    top, groups = 2 ** (bits - 1) - 1, parts(weight, group_size)
    largest = groups.abs().amax(1, keepdim=True)
    codes = torch.round(top * groups / largest)
    return codes.reshape(weight.shape), (codes * largest / top).reshape(weight.shape)


@pytest.mark.parametrize("group_size", [0, -1, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_and_values_are_the_textbooks(bits, group_size):
    weight, top = matrix(), 2 ** (bits - 1) - 1
    found = absmax(weight, bits=bits, group_size=group_size)
    codes, values = textbook(weight, bits, group_size)
    signed = found.codes.int() - 2 ** (bits - 1)
    assert signed.abs().max() == top and found.zero_point is None
    assert (signed - codes).abs().max() <= 1  # the scale is kept in bfloat16
    assert (signed != codes).float().mean() < 0.15 * top / 127 + 0.02
    step = parts(weight, group_size).abs().amax(1).max() / top
    assert (found.dense() - values).abs().max() <= 1.3 * step
    # with the scale that is stored, the codes are exactly the nearest
    scale = found.scale.double().repeat_interleave(found.codes.shape[1] // found.scale.shape[1], 1)
    assert torch.equal(signed.double(), (weight.float() / scale.float()).round().double())
    assert (found.dense() - weight).abs().max() <= 0.51 * scale.max() + step / 200


def test_scales_that_bfloat16_holds_give_the_formula_exactly():
    weight = matrix().clamp(-1, 1)
    weight[:, 0], weight[:, 16], weight[:, 32], weight[:, 48] = 127 / 64, -127 / 32, 127 / 64, 127 / 64
    for group_size in (0, -1, 16):
        found = absmax(weight, bits=8, group_size=group_size)
        codes, values = textbook(weight, 8, group_size)
        assert torch.equal(found.codes.double() - 128, codes) and torch.equal(found.dense().double(), values)


def test_per_tensor_is_one_grid_stored_in_every_row():
    weight = matrix()
    weight[2] *= 50
    found = absmax(weight, bits=8, group_size=0)
    assert found.scale.shape == (6, 1) and found.scale.unique().numel() == 1 and found.group_size == 64
    assert float(found.scale[0, 0]) == pytest.approx(float(weight.abs().max()) / 127, rel=1 / 256)
    alone = absmax(weight, bits=8, group_size=-1)
    lost = [(each.dense() - weight).square().sum(1) for each in (found, alone)]
    assert (lost[0][[0, 1, 3, 4, 5]] > 20 * lost[1][[0, 1, 3, 4, 5]]).all() and lost[0][2] == lost[1][2]


@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([0, -1, 4, 8]),
    size=st.floats(1e-42, 1e38),
    dead=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_any_finite_matrix_gives_codes_in_range_and_values_in_the_range_of_the_weights(
    bits, group_size, size, dead, seed
):
    weight = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed)).sub(0.5) * 2 * size
    if dead:
        weight[1] = 0
    found = absmax(weight, bits=bits, group_size=group_size)
    signed, values = found.codes.int() - 2 ** (bits - 1), found.dense()
    assert signed.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.isfinite(values).all() and values.abs().max() <= 1.005 * weight.abs().max() + 1e-38
    assert not dead or (values[1] == 0).all()
    assert (values.sign() * weight.sign() >= 0).all()
    again = absmax(-weight, bits=bits, group_size=group_size)
    assert torch.equal(again.dense(), -values)  # the grid is symmetric


@pytest.mark.parametrize("group_size", [0, -1, 16])
def test_weights_of_zero_stay_zero(group_size):
    assert (absmax(torch.zeros(4, 32), bits=4, group_size=group_size).dense() == 0).all()


@pytest.mark.parametrize("group_size", [0, -1, 32])
def test_the_model_is_rounded_layer_by_layer_and_saves(tmp_path, group_size):
    model, original = tiny.qwen2(), tiny.qwen2()
    done = module.quantize_(model, bits=8, group_size=group_size)
    for name, layer in calibrate.layers(model).items():
        expected = absmax(original.get_submodule(name).weight.detach(), bits=8, group_size=group_size)
        assert isinstance(layer, QuantLinear) and torch.equal(layer.codes, expected.codes)
        assert torch.equal(done[name].scale, layer.scale) and torch.equal(layer.scale, expected.scale)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, _ = compressed_tensors.load(tmp_path / "it")
    with torch.no_grad():
        assert torch.equal(again(tiny.tokens()).logits, model(tiny.tokens()).logits)


def test_two_runs_give_the_same_bytes():
    first, second = (absmax(matrix(), bits=4, group_size=16) for _ in range(2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.scale, second.scale)


def test_what_does_not_fit_is_refused_before_the_work():
    for given_, message in (({"bits": 9, "group_size": -1}, "bits=9 for model"),
                            ({"bits": 8, "group_size": 48}, "group_size=48 does not divide 64"),
                            ({"bits": 8, "group_size": False}, "group_size=False does not divide")):  # fmt: skip
        model = tiny.llama()
        with pytest.raises(ValueError, match=message):
            module.quantize_(model, **given_)
        assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())
    for group_size in (0, -1, 16):
        with pytest.raises(ValueError, match="NaN or infinite"):
            absmax(matrix().masked_fill(matrix() > 2, float("nan")), bits=8, group_size=group_size)
    with pytest.raises(ValueError, match="already; load the original"):
        model = tiny.llama()
        module.quantize_(model, bits=8)
        module.quantize_(model, bits=8)
