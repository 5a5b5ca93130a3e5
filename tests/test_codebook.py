"""NormalFloat levels against the published ones and the formula; nearest levels and scales by brute force; resuming."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.quantized.grid import BITS
from lib.quantizers import calibrate, codebook
from tests import tiny

# arXiv 2305.14314, appendix E
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
GRID = {"bits": 3, "group_size": 32}


def random(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def ids(seed=0):
    return tiny.tokens(3, 24, seed=seed)


def same(first, second):
    keys = ("codes", "scale", "codebook")
    return first.keys() == second.keys() and all(
        torch.equal(getattr(first[name], key), getattr(second[name], key)) for name in first for key in keys
    )


def test_the_sixteen_published_levels():
    assert (codebook.levels(4).double() - torch.tensor(NF4, dtype=torch.float64)).abs().max() < 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_levels_invert_the_normal_distribution(bits):
    """Written the other way round: the probabilities below the levels, by erf, are evenly spaced on either side."""
    found, half = codebook.levels(bits).double(), 2 ** (bits - 1)
    tail = 0.5 * (0.5 / (2**bits - 1) + 0.5 / 2**bits)
    largest = 2**0.5 * torch.erfinv(torch.tensor(1 - 2 * tail, dtype=torch.float64))
    probability = 0.5 * (1 + torch.erf(found * largest / 2**0.5))
    steps = probability.diff()
    below, above = (0.5 - tail) / (half - 1), (0.5 - tail) / half
    expected = torch.tensor([below] * (half - 1) + [above] * half, dtype=torch.float64)
    assert found.shape == (2**bits,) and torch.allclose(steps, expected, atol=1e-6)
    assert found[half - 1] == 0 and found[0] == -1 and found[-1] == 1


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_codes_are_the_nearest_levels_by_brute_force(bits):
    weight, values = random(5, 48), codebook.levels(bits).double()
    scale = codebook.choose(weight, bits=bits, group_size=16)
    found = codebook.quantize(weight, scale, bits=bits)
    ratio = (weight.reshape(5, 3, 16).double() / scale.double()[..., None]).reshape(5, 48)
    distance = (ratio[..., None] - values).abs()
    assert torch.allclose(distance.gather(-1, found.long()[..., None])[..., 0], distance.amin(-1), atol=1e-6)


def test_the_scale_is_the_largest_weight_and_the_extreme_is_met():
    weight = random(4, 64)
    found = codebook.codebook(weight, bits=4, group_size=32)
    largest = weight.reshape(4, 2, 32).abs().amax(-1)
    assert torch.equal(found.scale, largest.to(torch.bfloat16)) and found.zero_point is None
    assert ((found.dense().reshape(4, 2, 32).abs().amax(-1) - largest).abs() <= largest * 2**-8).all()


def test_search_never_does_worse_and_weighs_columns():
    weight, importance = random(16, 64, 3), random(1, 64, 4)[0].square()
    for bits in (2, 3, 4):
        plain, found = (
            codebook.codebook(weight, bits=bits, group_size=32, importance=importance, candidates=count).dense()
            for count in (1, 12)
        )
        losses = [((w - weight).square() * importance).reshape(16, 2, 32).sum(-1) for w in (plain, found)]
        assert (losses[1] <= losses[0] * (1 + 1e-5)).all() and losses[1].sum() < 0.95 * losses[0].sum()


def test_the_refit_scale_is_the_minimum_that_a_float64_scan_finds():
    groups, share, values = random(6, 16)[:, None], random(1, 16, 1)[0].square().reshape(1, 1, 16), codebook.levels(3)
    scale = groups.abs().amax(-1).to(torch.bfloat16)
    found = codebook._refit(groups, share, scale, values)
    scan = torch.linspace(0.1, 4, 39001, dtype=torch.float64)
    for row in range(6):
        ratio = groups[row, 0].double() / scale[row, 0].double()
        nearest = values.double()[(ratio[:, None] - values.double()).abs().argmin(1)]
        loss = ((groups[row, 0].double() - scan[:, None] * nearest).square() * share[0, 0].double()).sum(1)
        best = scan[loss.argmin()].item()
        assert abs(found[row, 0].item() - best) <= best * 2**-8 + 1e-3


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from(list(BITS)),
    groups=st.integers(1, 3),
    size=st.integers(1, 20),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    candidates=st.sampled_from([1, 4]),
    seed=st.integers(0, 10**6),
)
def test_any_matrix_gives_a_valid_grid(bits, groups, size, magnitude, candidates, seed):
    weight = random(3, groups * size, seed) * magnitude
    found = codebook.codebook(weight, bits=bits, group_size=size, candidates=candidates)
    assert found.codes.dtype == torch.uint8 and found.codes.max().item() < 2**bits
    assert found.scale.dtype == torch.bfloat16 and (found.scale > 0).all() and found.codebook.dtype == torch.float32
    assert torch.isfinite(found.dense()).all()
    assert (found.dense() - weight).abs().max() <= weight.abs().max()


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-42, 3e38, -3e38])
@pytest.mark.parametrize("candidates", [1, 8])
def test_constant_groups_stay_finite(value, candidates):
    values = codebook.codebook(torch.full((2, 8), value), bits=4, group_size=4, candidates=candidates).dense()
    assert torch.isfinite(values).all() and (values - value).abs().max() <= abs(value) * 0.01 + 1e-37


def test_dead_columns_and_no_importance_at_all_stay_finite():
    weight = random(3, 32)
    for importance in (torch.zeros(32), torch.eye(32)[0], torch.full((32,), 1e-30)):
        found = codebook.codebook(weight, bits=2, group_size=16, importance=importance, candidates=8)
        assert torch.isfinite(found.dense()).all() and (found.scale > 0).all()


def test_without_calibration_the_largest_weight_is_the_scale():
    model = tiny.llama()
    weights = {name: layer.weight.detach().clone() for name, layer in calibrate.layers(model).items()}
    done = codebook.quantize_(model, **GRID)
    assert list(done) == list(weights)
    for name, found in done.items():
        assert torch.equal(found.scale, weights[name].reshape(len(weights[name]), -1, 32).abs().amax(-1).bfloat16())
        assert torch.equal(calibrate.layers(model)[name].codebook, codebook.levels(3))
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids()).logits).all()


def test_with_calibration_the_inputs_weigh_the_search():
    model, seen = tiny.llama(), {}
    calibrate.sequential(tiny.llama(), ids(), lambda names, weight, hessian: seen.update({names[0]: (weight, hessian)}))
    done, first = codebook.quantize_(model, ids(), **GRID), "model.layers.0.self_attn.q_proj"
    weight, hessian = seen[first]
    expected = codebook.choose(weight, **GRID, importance=hessian.diagonal(), candidates=8)
    assert torch.equal(done[first].scale, expected[: len(done[first].scale)])


def test_a_killed_walk_resumes_and_ends_in_the_same_bytes(tmp_path):
    whole = codebook.quantize_(tiny.llama(), ids(), **GRID)
    kept = codebook.quantize_(tiny.llama(), ids(), **GRID, state=tmp_path)
    for left in (0, 1, 3):
        for file in sorted(tmp_path.glob("block-*"))[left:]:
            file.unlink()
        again = codebook.quantize_(tiny.llama(), ids(), **GRID, state=tmp_path)
        assert same(whole, again) and same(whole, kept)


@pytest.mark.parametrize(
    ("change", "named"), [({"bits": 4}, "bits=3 there, 4 here"), ({"candidates": 4}, "candidates=8 there, 4 here")]
)
def test_another_job_is_refused_with_both_values(tmp_path, change, named):
    codebook.quantize_(tiny.llama(), ids(), **GRID, state=tmp_path)
    with pytest.raises(ValueError, match=named):
        codebook.quantize_(tiny.llama(), ids(), **GRID | change, state=tmp_path)
    with pytest.raises(ValueError, match="calibration="):
        codebook.quantize_(tiny.llama(), ids(seed=1), **GRID, state=tmp_path)


def test_what_is_not_possible_is_refused_before_the_work():
    with pytest.raises(ValueError, match="does not divide"):
        codebook.quantize_(tiny.llama(), bits=4, group_size=48)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        codebook.levels(9)
    with pytest.raises(ValueError, match="NaN or infinite"):
        codebook.codebook(torch.tensor([[1.0, float("inf")]]), bits=4, group_size=2)
    with pytest.raises(ValueError, match=r"does not fit a matrix of shape \(4, 6\); .*; pass the scale that `choose`"):
        codebook.quantize(torch.zeros(4, 6), torch.ones(3, 2), bits=4)
