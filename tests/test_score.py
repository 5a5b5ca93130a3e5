"""A Score refuses what is no measurement, reads well, and carries an honest error."""

import math

import numpy as np
import pandas
import pytest
import scipy.stats

from lib.metrics import score
from lib.metrics.score import Score


def measured(value=1.0, **changes):
    return Score(**(dict(value=value, stderr=0.1, n=4, unit="perplexity", higher_is_better=False) | changes))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (Score(26.1537, 0.3124, 64, "", False), "26.15 ± 0.31 (n=64)"),
        (Score(506788.4, 12345.6, 64, "", False), "506,788 ± 12,346 (n=64)"),
        (Score(0.00123456, 0.0000123, 8, "", None), "0.001235 ± 0.000012 (n=8)"),
        (Score(26.1537, None, 1, "", False), "26.15 (n=1)"),
        (Score(math.inf, None, 3, "", False), "inf (n=3)"),
        (score.exact(134515008, "bytes"), "134,515,008"),
        (score.exact(4.521234, "bits"), "4.521"),
        (Score(0.5, 0, 3, "", None), "0.5 (n=3)"),
    ],
)
def test_score_reads_with_sensible_digits(given, shown):
    assert str(given) == shown


def test_score_interval_is_students_95_percent():
    for n in (2, 3, 4, 8, 64):
        reach = scipy.stats.t.ppf(0.975, n - 1)
        assert measured(10, stderr=1.0, n=n).interval == pytest.approx((10 - reach, 10 + reach))
    assert measured(10, stderr=0.0, n=1).interval == (10, 10)  # a counted quantity
    assert measured(stderr=None).interval is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(value=math.nan), "value=nan"),
        (dict(stderr=math.nan), "stderr=nan.*give None"),
        (dict(baseline=math.nan), "baseline=nan"),
        (dict(stderr=-1), "stderr=-1"),
        (dict(n=0), "n=0"),
    ],
)
def test_score_refuses_what_is_no_measurement(changes, message):
    with pytest.raises(ValueError, match=message):
        measured(**changes)


def test_score_from_values_is_mean_with_standard_error():
    values = [1.0, 2.0, 4.0, 9.0]
    found = score.from_values(values, "s", higher_is_better=False, baseline=2.0)
    assert found.value == 4.0 and found.n == 4 and found.baseline == 2.0
    assert found.stderr == pytest.approx(pandas.Series(values).sem())
    assert score.from_values([3.0], "s").stderr is None
    with pytest.raises(ValueError, match="no values"):
        score.from_values([], "s")


def test_bootstrap_of_the_mean_agrees_with_theory_and_leaves_global_seeds():
    values = np.random.default_rng(1).normal(size=400)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    found = score.bootstrap(values, np.mean)
    assert (np.random.get_state()[1] == before).all()
    assert found == pytest.approx(values.std(ddof=1) / 20, rel=0.1)
    assert found == score.bootstrap(values, np.mean) != score.bootstrap(values, np.mean, seed=1)


def test_bootstrap_is_the_same_for_vectorised_and_plain_statistics(monkeypatch):
    values = np.random.default_rng(2).normal(size=(30, 2))
    plain = score.bootstrap(values, lambda sample: sample[:, 0].mean() / sample[:, 1].std())
    vectorised = score.bootstrap(values, lambda s, axis: s[..., 0].mean(axis=axis) / s[..., 1].std(axis=axis))
    assert plain == pytest.approx(vectorised)
    monkeypatch.setattr(score, "_CHUNK", 60 * 300)  # in several blocks of draws
    assert score.bootstrap(values[:, 0], np.median) == pytest.approx(np.std(medians(values[:, 0]), ddof=1), rel=0.15)


def medians(values):
    generator = np.random.default_rng(9)
    return [np.median(generator.choice(values, len(values))) for _ in range(3000)]


def test_bootstrap_without_spread_or_shape():
    assert score.bootstrap([1.0]) is None
    assert score.bootstrap([1.0, math.inf]) is None
    with pytest.raises(ValueError, match="one number per draw"):
        score.bootstrap([1.0, 2.0, 3.0], lambda samples, axis: samples)
