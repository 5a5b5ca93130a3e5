"""Uncertainty of a mean over samples: standard errors, clustered where samples share a group, and 95 % intervals.

Samples that share a passage or a subject are correlated, so n of them carry less information than n independent ones.
Every function takes `groups`, one label a sample. Without them, or where all labels differ or all are the same (one
subject is then the whole population asked about), samples count as independent.
"""

import math
from dataclasses import dataclass

import numpy as np

NORMAL = 1.959963984540054  # 97.5 % quantile of the standard normal
_PARTS = 100  # groups of samples left out in turn (jackknife), to see how much weight a few of them have


@dataclass(frozen=True)
class Interval:
    """A value with its standard error and its 95 % interval from `low` to `high`, over n samples."""

    value: float
    stderr: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def mean(values, groups=None) -> Interval:
    """The mean of `values` [n] with its 95 % interval.

    Shares (values 0 and 1) get Wilson's interval, which stays inside 0 and 1 and is valid near them, at the effective
    number of independent samples; other values get Student's with the clustered error.
    Raises ValueError for fewer than two samples, or labels that are not one a sample.
    """
    values, labels = checked(values, groups)
    n, number = len(values), int(labels.max()) + 1
    average, stderr = float(values.mean()), clustered(values, labels)
    if set(np.unique(values)) <= {0.0, 1.0}:
        alone = math.sqrt(average * (1 - average) / n)
        worth = n * (alone / stderr) ** 2 if stderr > 0 and number < n else n
        return Interval(average, stderr, *wilson(average, min(worth, n), quantile(number - 1)), n)
    reach = quantile(number - 1) * stderr
    return Interval(average, stderr, average - reach, average + reach, n)


def checked(values, groups) -> tuple[np.ndarray, np.ndarray]:
    """`values` as float64 [n] and their groups as numbers from 0; errors as in `mean`."""
    values = np.asarray(values, dtype=np.float64).ravel()
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} samples; two or more are allowed, one says nothing about spread; evaluate more.")
    if groups is None:
        return values, np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} samples; one label a sample is allowed; pass them in order.")
    labels = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)[1]
    return values, labels if labels.max() + 1 > 1 else np.arange(n)


def clustered(values: np.ndarray, labels: np.ndarray) -> float:
    """Standard error of the mean of `values` [n] whose samples share `labels` [n] (Liang and Zeger 1986,
    doi:10.1093/biomet/73.1.13): sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / n, with G = n s / sqrt(n).
    """
    sums = np.bincount(labels, weights=values - values.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def wilson(share: float, n: float, z: float = NORMAL) -> tuple[float, float]:
    """Wilson's interval of a share of n trials (1927, doi:10.1080/01621459.1927.10502953): all p for which the score
    test does not reject, |share - p| <= z sqrt(p (1 - p) / n)."""
    from scipy.special import ndtr  # takes 0.3 s to load
    from statsmodels.stats.proportion import proportion_confint  # takes a second to load

    low, high = proportion_confint(share * n, n, alpha=2 * ndtr(-z), method="wilson")
    return min(float(low), share), max(float(high), share)  # at 0 and 1 they meet it but for rounding


def quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t with `freedom` degrees of freedom; fewer than 1 count as 1, infinity is fine."""
    from scipy.special import stdtrit  # takes 0.3 s to load, and every process that measures imports this module

    return NORMAL if math.isinf(freedom) else float(stdtrit(max(freedom, 1.0), 0.975))


def half_widths(rows) -> np.ndarray:
    """Half-widths of the 95 % intervals of recorded means: their standard errors times Student's quantile.

    rows: a table with the columns stderr (unknown counts as 0) and n (unknown counts as very many), as `Run.table` has.
    """
    errors, counts = rows["stderr"].astype(float).fillna(0), rows["n"].astype(float).fillna(math.inf)
    return np.array([quantile(n - 1) * error for error, n in zip(errors, counts)])


def bootstrap(statistic, groups, *, draws: int = 1000, seed: int = 0, share: bool = False) -> Interval:
    """A statistic that is no mean (AUROC, F1, corpus BLEU) with its bootstrap interval over groups
    (Efron 1979, doi:10.1214/aos/1176344552), of percentiles.

    statistic: takes the positions of the drawn samples, returns a number; one that raises ValueError or
    ZeroDivisionError for a draw (no positives in it) leaves that draw out. groups: one label a sample. share: where
    all draws lie from 0 to 1, the interval is Student's on the scale of log odds, which covers where percentiles
    do not: few positives, or a value near 1. With fewer than about ten positives neither does.
    Raises ValueError where fewer than half of the draws give a finite number.
    """
    _, labels = checked(np.zeros(len(groups)), groups)
    order, sizes = np.argsort(labels, kind="stable"), np.bincount(labels)
    members, count = np.split(order, np.cumsum(sizes)[:-1]), len(sizes)
    generator = np.random.default_rng(seed)

    def values(drawn) -> list[float]:
        found = []
        for chosen in drawn:
            places = order[chosen] if count == len(order) else np.concatenate([members[place] for place in chosen])
            try:
                found.append(float(statistic(places)))
            except (ValueError, ZeroDivisionError):
                continue
        return [each for each in found if math.isfinite(each)]

    found = values(generator.integers(0, count, count) for _ in range(draws))
    if len(found) < draws / 2:
        raise ValueError(f"{len(found)} of {draws} draws gave a number; at least half must; evaluate more samples.")
    value, stderr = float(statistic(np.arange(len(labels)))), float(np.std(found, ddof=1))
    if share and min(*found, value) >= 0 and max(*found, value) <= 1:
        parts = np.arange(count) % min(count, _PARTS)
        left = values(np.flatnonzero(parts != part) for part in range(parts.max() + 1))
        low, high = _odds(value, stderr, min(_freedom(left), count - 1), count)
    else:
        low, high = np.percentile(found, [2.5, 97.5], method="weibull")  # unbiased for few draws, unlike the default
    return Interval(value, stderr, float(low), float(high), len(labels))


def _freedom(left: list[float]) -> int:
    """Degrees of freedom of a variance that a jackknife's values add up to, from their kurtosis k: 2 n / (k - 1), as
    var(s^2) is about s^4 (k - 1) / n. A few samples with much weight, such as rare positives, make it small."""
    squares = np.square(np.array(left) - np.mean(left)) if left else np.zeros(1)
    if squares.max() == 0:
        return max(len(squares), 1)
    kurtosis = len(squares) * np.square(squares).sum() / squares.sum() ** 2
    return int(min(max(2 * len(squares) / max(kurtosis - 1, 1e-9), 1), 1 << 20))


def _odds(value: float, stderr: float, freedom: int, n: int) -> tuple[float, float]:
    """Student's interval of a value between 0 and 1 on the scale of log odds; Wilson's where no draw differs."""
    if stderr == 0:
        return wilson(value, n)
    near = min(max(value, 0.5 / n), 1 - 0.5 / n)
    middle, reach = math.log(near / (1 - near)), quantile(freedom) * stderr / (near * (1 - near))
    low, high = (0.5 + 0.5 * math.tanh((middle + sign * reach) / 2) for sign in (-1, 1))
    return min(low, value), max(high, value)
