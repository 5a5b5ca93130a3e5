"""Zero-point quantization against the textbook's formula in float64, per tensor, per row and per group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.export import compressed_tensors
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate
from lib.quantizers import zero_point as module
from lib.quantizers.absmax import absmax
from lib.quantizers.rtn import rtn
from lib.quantizers.zero_point import zero_point
from tests import tiny
from tests.test_absmax import matrix, parts


def textbook(weight, bits, group_size):
    """Codes, zero points and values by the formula, in float64: scale (max - min) / (2^b - 1), zero -min / scale."""
    groups, top = parts(weight, group_size), 2**bits - 1
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / top
    zero = torch.round(-low / scale)
    codes = (torch.round(groups / scale) + zero).clamp(0, top)
    return codes.reshape(weight.shape), zero, (scale * (codes - zero)).reshape(weight.shape), scale


@pytest.mark.parametrize("group_size", [0, -1, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_zero_points_and_values_are_the_textbooks(bits, group_size):
    weight = matrix() + 0.4  # lopsided
    found = zero_point(weight, bits=bits, group_size=group_size)
    codes, zero, values, scale = textbook(weight, bits, group_size)
    theirs = zero if group_size else zero.expand(6, 1)
    assert (found.zero_point.double().reshape(theirs.shape) - theirs).abs().max() <= 1
    # the scale is kept in bfloat16, and a zero point that moves by one moves the codes with it
    assert (found.codes.double() - codes).abs().max() <= 2
    spread = found.codes.shape[1] // found.scale.shape[1]
    step, own = (each.float().repeat_interleave(spread, 1) for each in (found.scale, found.zero_point))
    assert torch.equal(found.codes.float(), ((weight / step).round() + own).clamp(0, 2**bits - 1))
    assert (found.dense() - values).abs().max() <= 1.5 * scale.max()
    assert (found.dense() - weight).abs().max() <= 1.02 * scale.max()


def test_exact_scales_give_the_formula_exactly():
    weight = (matrix() * 0.2).clamp(-0.9, 0.9)
    for start in (0, 16, 32, 48):  # 255 steps of 1/64 in every group, row and in the matrix
        weight[:, start], weight[:, start + 1] = -1, -1 + 255 / 64
    for group_size in (0, -1, 16):
        found = zero_point(weight, bits=8, group_size=group_size)
        codes, zero, values, _ = textbook(weight, 8, group_size)
        assert torch.equal(found.codes.double(), codes) and torch.equal(found.dense().double(), values)
        assert (found.zero_point == 64).all() and (zero == 64).all()


def test_per_tensor_is_one_grid_stored_in_every_row():
    found = zero_point(matrix() + 0.3, bits=8, group_size=0)
    assert found.scale.shape == found.zero_point.shape == (6, 1) and found.group_size == 64
    assert found.scale.unique().numel() == found.zero_point.unique().numel() == 1


@pytest.mark.parametrize("group_size", [-1, 16])
def test_per_row_and_per_group_it_is_rounding_to_nearest_without_a_search(group_size):
    ours = zero_point(matrix(), bits=4, group_size=group_size)
    plain = rtn(matrix(), bits=4, group_size=group_size)
    assert all(torch.equal(a, b) for a, b in zip(ours[:3], plain[:3]))


@pytest.mark.parametrize("group_size", [0, -1, 16])
def test_lopsided_weights_gain_a_bit_over_absmax(group_size):
    weight = matrix(seed=1).abs()
    lost = {
        method.__name__: (method(weight, bits=4, group_size=group_size).dense() - weight).square().mean()
        for method in (absmax, zero_point)
    }
    assert lost["zero_point"] < 0.35 * lost["absmax"]  # twice as many codes in use: a quarter of the squared error


@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([0, -1, 4, 8]),
    size=st.floats(1e-42, 1e38),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_any_finite_matrix_gives_codes_in_range_and_an_exact_zero(bits, group_size, size, shift, seed):
    weight = (torch.rand(3, 8, generator=torch.Generator().manual_seed(seed)) + shift) / 4 * size
    weight[0, 0] = 0
    found = zero_point(weight, bits=bits, group_size=group_size)
    assert int(found.codes.max()) < 2**bits and int(found.zero_point.max()) < 2**bits
    values = found.dense()
    assert torch.isfinite(values).all() and values[0, 0] == 0


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("group_size", [0, -1, 16])
def test_constant_weights_are_nearly_exact(value, group_size):
    found = zero_point(torch.full((4, 32), value), bits=4, group_size=group_size).dense()
    assert (found - value).abs().max() <= abs(value) / 100


@pytest.mark.parametrize("group_size", [0, -1, 32])
def test_the_model_is_rounded_layer_by_layer_and_saves(tmp_path, group_size):
    model, original = tiny.llama(), tiny.llama()
    done = module.quantize_(model, bits=8, group_size=group_size)
    for name, layer in calibrate.layers(model).items():
        expected = zero_point(original.get_submodule(name).weight.detach(), bits=8, group_size=group_size)
        assert isinstance(layer, QuantLinear) and torch.equal(layer.codes, expected.codes)
        assert torch.equal(done[name].zero_point, expected.zero_point)
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "it")
    again, _ = compressed_tensors.load(tmp_path / "it")
    with torch.no_grad():
        assert torch.equal(again(tiny.tokens()).logits, model(tiny.tokens()).logits)


def test_what_does_not_fit_is_refused_before_the_work():
    model = tiny.llama()
    with pytest.raises(ValueError, match="bits=1 for model"):
        module.quantize_(model, bits=1, group_size=0)
    with pytest.raises(ValueError, match="group_size=48 does not divide 64"):
        module.quantize_(model, bits=8, group_size=48)
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())
    for group_size in (0, -1, 16):
        with pytest.raises(ValueError, match="NaN or infinite"):
            zero_point(matrix().masked_fill(matrix() > 2, float("inf")), bits=8, group_size=group_size)
