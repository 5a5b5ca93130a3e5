"""Paired comparisons against exact tests and simulated truth: false alarms, coverage, power, retention."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.metrics import paired_tests


def pairs(generator, n, gain, loss, both=0.5):
    """Right-or-wrong outcomes [n] of two models: only the second right with P `gain`, only the first with `loss`."""
    draw = generator.random(n)
    first = draw < loss + both
    second = (draw < both) | ((draw >= loss + both) & (draw < loss + both + gain))
    return first.astype(float), second.astype(float)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_test(gained, lost):
    n, fewer = gained + lost, min(gained, lost)
    tail = Fraction(sum(math.comb(n, k) for k in range(fewer + 1)), 2**n)
    assert paired_tests.mcnemar(gained, lost) == pytest.approx(float(min(1, 2 * tail)), rel=1e-9)


def test_a_comparison_says_what_changed():
    first, second = [1, 1, 1, 0, 0, 1] * 10, [1, 0, 1, 1, 0, 0] * 10
    found = paired_tests.paired(first, second)
    assert (found.gained, found.lost, found.n, found.test) == (10, 20, 60, "McNemar, exact")
    assert found.difference == pytest.approx(-1 / 6) and found.low < found.difference < found.high
    assert not found.seen and str(found).endswith("no difference seen")
    clear = paired_tests.paired([1] * 30, [0] * 20 + [1] * 10)
    assert clear.seen and str(clear).endswith(": a difference") and clear.p == pytest.approx(2 * 0.5**20)
    same = paired_tests.paired([1, 0, 1], [1, 0, 1])
    assert same.p == 1 and not same.seen and same.low < 0 < same.high  # three samples rule out little
    assert not paired_tests.paired([0.5, 0.25], [0.5, 0.25]).seen


def test_models_that_can_not_be_paired_are_refused():
    with pytest.raises(ValueError, match="2 scores against 3"):
        paired_tests.paired([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="two or more"):
        paired_tests.paired([1], [0])


def test_a_against_a_gives_at_most_5_percent_false_alarms_and_intervals_cover():
    generator, alarms, hits = np.random.default_rng(0), [], []
    for _ in range(2000):
        found = paired_tests.paired(*pairs(generator, 300, 0.1, 0.1))
        alarms.append(found.seen)
        shifted = paired_tests.paired(*pairs(generator, 300, 0.14, 0.08))
        hits.append(shifted.low <= 0.06 <= shifted.high)
    assert np.mean(alarms) <= 0.05 and 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize("size", [1, 12])
def test_the_bootstrap_gives_at_most_5_percent_false_alarms_and_covers(size):
    generator, alarms, hits = np.random.default_rng(size), [], []
    labels = np.repeat(range(40), size)
    for _ in range(1000):
        shared = np.repeat(generator.normal(0, 0.3, 40), size)
        difference = shared + generator.standard_t(4, 40 * size)  # heavy tails, as scores of generated texts have
        p, reach = paired_tests.studentized(difference, labels, seed=int(generator.integers(1 << 30)))
        alarms.append(p < paired_tests.LEVEL)
        hits.append(abs(difference.mean()) <= reach)  # the true difference is 0: shifting both changes nothing
    assert np.mean(alarms) <= 0.05 + 1.96 * np.sqrt(0.05 * 0.95 / 1000)  # 5 %, and the binomial error of 1000 tries
    assert 0.93 <= np.mean(hits) <= 0.97


def test_clusters_widen_the_interval_of_right_or_wrong_scores():
    first = np.repeat([1.0, 1, 1, 0, 1, 1, 1, 1], 20)
    second = np.repeat([1.0, 0, 1, 1, 1, 0, 1, 1], 20)
    alone, together = paired_tests.paired(first, second), paired_tests.paired(first, second, np.repeat(range(8), 20))
    assert alone.seen and not together.seen
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert together == paired_tests.paired(first, second, np.repeat(range(8), 20))  # seeded
    same = paired_tests.paired(first, first, np.repeat(range(8), 20))
    assert same.p == 1 and (same.low, same.high) == paired_tests.bonett_price(0, 0, 8)  # eight groups rule out little


def test_the_detectable_difference_is_seen_in_four_of_five_tries():
    n, disagreement = 800, 0.2
    difference = paired_tests.minimum_detectable(n, disagreement=disagreement)
    assert difference == pytest.approx(2.8016 * (0.2 / 800) ** 0.5, rel=1e-4)
    gain, loss = (disagreement + difference) / 2, (disagreement - difference) / 2
    generator = np.random.default_rng(5)
    found = [paired_tests.paired(*pairs(generator, n, gain, loss)) for _ in range(600)]
    assert 0.74 <= np.mean([each.seen for each in found]) <= 0.86
    assert np.mean([each.detectable for each in found]) == pytest.approx(difference, rel=0.05)
    for wrong in ({"n": 1}, {"n": 9, "disagreement": 0.0}):
        with pytest.raises(ValueError, match="are allowed"):
            paired_tests.minimum_detectable(**wrong)


def test_retention_is_the_ratio_above_chance_and_its_interval_covers():
    generator, hits = np.random.default_rng(6), []
    truth = (0.45 - 0.25) / (0.5 - 0.25)
    for _ in range(2000):
        full, compressed = pairs(generator, 500, 0.07, 0.12, both=0.38)
        found = paired_tests.retention(compressed, full, 0.25)
        hits.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.97
    assert found.value == pytest.approx((compressed.mean() - 0.25) / (full.mean() - 0.25))
    same = paired_tests.retention(full, full, 0.25)
    assert same.value == same.low == same.high == 1 and same.stderr == 0


def test_nothing_is_retained_of_a_model_at_chance():
    generator = np.random.default_rng(7)
    full, compressed = pairs(generator, 200, 0.1, 0.1, both=0.15)
    assert paired_tests.retention(compressed, full, 0.25) is None
    assert paired_tests.retention(compressed, full, 0.9) is None


def test_retention_over_groups_is_wider():
    generator = np.random.default_rng(8)
    easy = np.repeat(generator.random(30), 10)
    full = (generator.random(300) < 0.5 + 0.5 * easy).astype(float)
    compressed = full * (generator.random(300) < 0.4 + 0.6 * np.repeat(generator.random(30), 10))
    groups = np.repeat(range(30), 10)
    alone, together = (
        paired_tests.retention(compressed, full, 0.25),
        paired_tests.retention(compressed, full, 0.25, groups),
    )
    assert together.value == alone.value and together.high - together.low > alone.high - alone.low
