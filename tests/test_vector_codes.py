"""Vector codes: nearest entries, the bytes that they are charged, and what is known of a Gaussian."""

import pytest
import torch

from lib.analysis import vector_codes
from lib.quantizers import rtn


def gaussian(rows=192, columns=128, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def lost(weight, values):
    return float((weight - values).square().sum() / weight.square().sum())


def test_pairs_beat_whole_zero_points_on_a_gaussian_and_stay_above_what_theory_allows():
    """A book of 16 pairs leaves 0.109 of a Gaussian's power, and no code of 2 bits less than 1/16."""
    weight = gaussian()
    found = vector_codes.code(weight, rounds=8)
    whole = rtn.rtn(weight, bits=2, group_size=64, candidates=8).dense()
    assert 1 / 16 < lost(weight, found.values) < 0.115 < lost(weight, whole)
    alone = vector_codes.code(weight, dimension=1, books=1, rounds=8)
    assert lost(weight, found.values) < lost(weight, alone.values)
    assert torch.equal(vector_codes.code(weight, rounds=8).values, found.values)


def test_every_value_is_an_entry_times_its_groups_scale_and_everything_is_charged():
    weight = gaussian(4)
    found = vector_codes.code(weight, books=2, rounds=2)
    assert found.bits == pytest.approx(2 + (16 + 1) / 64 + 16 * 2 * 16 * 2 / weight.numel())
    pairs = found.values.view(-1, 32, 2)
    for group in pairs:
        assert len(torch.unique(group, dim=0)) <= 16
    fours = vector_codes.code(weight, dimension=4, books=1, rounds=1)
    assert fours.bits == pytest.approx(2 + 16 / 64 + 256 * 4 * 16 / weight.numel())


def test_the_codes_are_the_nearest_entries():
    groups, book = gaussian(6, 8, seed=1).view(6, 4, 2), gaussian(16, 2, seed=2)
    codes, error = vector_codes._assigned(groups, book)
    distances = (groups[:, :, None] - book).square().sum(-1)
    assert torch.equal(codes, distances.argmin(-1))
    torch.testing.assert_close(error, distances.amin(-1).sum(-1))


@pytest.mark.parametrize("given", [{"dimension": 3}, {"dimension": 0}, {"books": 0}, {"bits": 4, "dimension": 4}])
def test_what_no_book_can_hold_is_refused(given):
    with pytest.raises(ValueError, match="at most 4,096 entries"):
        vector_codes.code(gaussian(2), **given)
