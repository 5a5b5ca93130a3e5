"""Standard errors and intervals against formulas, scipy, and the truth of simulated outcomes."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.metrics import intervals


def test_independent_samples_have_the_usual_error():
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = intervals.mean(values)
    assert found.value == pytest.approx(values.mean()) and found.n == 50
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert found.high - found.value == pytest.approx(2.00957523712924 * found.stderr, rel=1e-5)  # t, 49 degrees
    assert str(intervals.mean([0.0, 1.0] * 8)) == "0.500 [0.265, 0.735] (n=16)"


def test_the_clustered_error_is_that_of_group_sums():
    values, groups = np.array([1.0, 2.0, 4.0, 8.0, 9.0]), ["a", "a", "b", "c", "c"]
    residuals = values - values.mean()
    sums = [residuals[:2].sum(), residuals[2], residuals[3:].sum()]
    expected = math.sqrt(3 / 2 * sum(each**2 for each in sums)) / 5
    assert intervals.mean(values, groups).stderr == pytest.approx(expected)
    repeated = intervals.mean(np.repeat(values, 4), np.repeat(range(5), 4))  # copies bring no news
    assert repeated.stderr == pytest.approx(intervals.mean(values).stderr)
    assert intervals.mean(values, ["same"] * 5) == intervals.mean(values)  # one subject: its samples are the population


@given(st.integers(0, 40), st.integers(1, 40))
def test_wilson_is_where_the_score_test_turns(successes, more):
    n = successes + more
    share = successes / n
    low, high = intervals.wilson(share, n)
    for edge in (low, high):
        if 1e-9 < edge < 1 - 1e-9:
            assert abs(share - edge) == pytest.approx(intervals.NORMAL * math.sqrt(edge * (1 - edge) / n), abs=1e-9)
    assert 0 <= low <= share <= high <= 1


def test_quantiles_are_those_of_the_tables():
    tables = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 7: 2.364624, 20: 2.085963, 100: 1.983972}
    for freedom, expected in tables.items():
        assert intervals.quantile(freedom) == pytest.approx(expected, rel=3e-3)


def test_half_widths_are_students_quantile_times_the_error():
    rows = pd.DataFrame({"stderr": [0.1, 2.0, None, 0.1], "n": [3, 8, 5, None]})
    assert intervals.half_widths(rows) == pytest.approx([0.4302653, 2 * 2.364624, 0, 0.1959964], rel=1e-6)


def test_what_can_not_have_an_interval_is_refused():
    with pytest.raises(ValueError, match="1 samples; two or more"):
        intervals.mean([1.0])
    with pytest.raises(ValueError, match="2 groups for 3 samples"):
        intervals.mean([1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="draws gave a number"):
        intervals.bootstrap(lambda chosen: math.nan, range(9))


def covered(intervals_, truth):
    return np.mean([low <= truth <= high for low, high in intervals_])


def test_intervals_of_shares_cover_95_percent():
    generator = np.random.default_rng(1)
    for n in (60, 400):
        hits = []
        for share in generator.uniform(0.1, 0.9, 2000):  # over many shares: at one share the coverage is a staircase
            found = intervals.mean(generator.random(n) < share)
            hits.append(found.low <= share <= found.high)
        assert 0.93 <= np.mean(hits) <= 0.97


def test_intervals_of_means_cover_95_percent():
    generator = np.random.default_rng(2)
    found = [intervals.mean(values) for values in generator.normal(2, 3, (2000, 40))]
    assert 0.93 <= covered([(each.low, each.high) for each in found], 2) <= 0.97


def clusters(generator, count, size, share=0.6, alike=3.0):
    """Outcomes 0 and 1 [count * size] whose groups differ: each group's share is a beta variable around `share`."""
    shares = generator.beta(alike * share, alike * (1 - share), count)
    return (generator.random((count, size)) < shares[:, None]).ravel().astype(float)


def test_intervals_of_clustered_shares_cover_95_percent_and_naive_ones_do_not():
    generator = np.random.default_rng(3)
    groups = np.repeat(range(40), 15)
    outcomes = [clusters(generator, 40, 15) for _ in range(1000)]
    found = [intervals.mean(each, groups) for each in outcomes]
    assert 0.93 <= covered([(each.low, each.high) for each in found], 0.6) <= 0.97
    naive = [intervals.mean(each) for each in outcomes]
    assert covered([(each.low, each.high) for each in naive], 0.6) < 0.85
