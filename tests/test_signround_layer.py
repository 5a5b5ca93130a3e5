"""Learned offsets and ranges: values and gradients as autograd finds them in float64, and where they stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from lib.quantizers.rtn import rtn
from lib.quantizers.signround_layer import RANGE, SignRoundWeight
from tests.test_signround import GRID, naive, perturbed, random, same

KINDS = [{}, {"symmetric": True}, {"levels": "half"}, {"levels": "balanced"}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_and_gradients_equal_autograd_through_the_formula_in_float64(bits, kind):
    weight, upstream = random(24, 96), random(24, 96, seed=1)
    layer = perturbed(weight, rtn(weight, bits=bits, group_size=32, **kind))
    leaves = [part.double().requires_grad_() for part in (layer.offset, layer.alpha, layer.beta)]
    values = naive(layer, *leaves)
    of_offset, of_alpha, of_beta = torch.autograd.grad(values, leaves, upstream.double())
    assert torch.allclose(layer.dense.double(), values, atol=1e-6)
    found = layer.gradients(upstream)
    assert torch.allclose(found[0].double() * layer.scale.double()[..., None], of_offset, atol=1e-6)
    assert torch.allclose(found[1].double(), of_alpha, rtol=1e-4, atol=1e-4 * of_alpha.abs().max().item())
    assert torch.allclose(found[2].double(), of_beta, rtol=1e-4, atol=1e-4 * of_beta.abs().max().item())
    clipped = (found[0] == 0).float().mean()
    assert clipped > 0.001  # both kinds of weights were there: inside the range and outside


@settings(max_examples=40, deadline=None)
@given(bits=some.sampled_from([2, 3, 4, 8]), kind=some.sampled_from(KINDS), data=some.data())
def test_learning_starts_at_the_very_codes_it_is_given(bits, kind, data):
    """Any codes on any grid, near their weights or far from them."""
    seed = data.draw(some.integers(0, 10**6))
    weight = random(6, 64, seed=seed) * 10.0 ** data.draw(some.integers(-6, 6))
    start = rtn(weight, bits=bits, group_size=16, **kind)
    change = torch.randint(-2, 3, start.codes.shape, generator=torch.Generator().manual_seed(seed))
    start = start._replace(codes=(start.codes.int() + change).clamp(0, 2**bits - 1).to(torch.uint8))
    layer = SignRoundWeight(weight, start)
    assert same({"": layer.quantized()}, {"": start}) and layer.quantized().levels == start.levels
    assert torch.equal(layer.dense.detach(), start.dense())


def test_offsets_and_ranges_stay_where_they_belong():
    weight = random(8, 64)
    layer = SignRoundWeight(weight, rtn(weight, **GRID))
    for seed in range(12):
        layer.step_(random(8, 64, seed=seed), 0.5, 0.5)
    assert layer.offset.abs().max() <= 0.5
    for end in (layer.alpha, layer.beta):
        assert end.min() >= RANGE[0] and end.max() <= RANGE[1]
    quantized = layer.quantized()
    assert quantized.codes.max() <= 7 and quantized.zero_point.max() <= 7
    assert torch.equal(quantized.dense(), layer.dense.detach())
