"""Uncertainty of a mean over samples: standard errors, clustered where samples share a group, and 95 % intervals.

Samples that share a passage or a subject are alike, so n of them tell less than n independent ones. Every function
takes `groups`, one label a sample. Without them, or where all labels differ or all are the same (one subject is then
the whole population asked about), samples count as independent.
"""

import math
from dataclasses import dataclass

import numpy as np

NORMAL = 1.959964  # 97.5 % quantile of the standard normal


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

    Shares (values 0 and 1) get Wilson's interval, which stays inside 0 and 1 and holds near them, at the number of
    independent samples that the clustered error is worth; other values get Student's with the clustered error.
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
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * reach) / (1 + z * z / n) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t with `freedom` >= 1 degrees of freedom (exact for 1 and 2; else the expansion of
    Abramowitz and Stegun 26.7.5, whose error is below 0.3 % from 3 on)."""
    if freedom < 3:
        return {1: 12.706205, 2: 4.302653}[max(freedom, 1)]
    z, v = NORMAL, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (power + 1) for power, term in enumerate(terms))


def bootstrap(statistic, groups, *, draws: int = 1000, seed: int = 0) -> Interval:
    """A statistic that is no mean (AUROC, F1, corpus BLEU) with its percentile bootstrap over groups
    (Efron 1979, doi:10.1214/aos/1176344552).

    statistic: takes the positions of the drawn samples, returns a number; one that raises ValueError or
    ZeroDivisionError for a draw (no positives in it) leaves that draw out. groups: one label a sample.
    Raises ValueError where fewer than half of the draws give a finite number.
    """
    _, labels = checked(np.zeros(len(groups)), groups)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    generator, found = np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = generator.integers(0, len(members), len(members))
        try:
            found.append(float(statistic(np.concatenate([members[place] for place in chosen]))))
        except (ValueError, ZeroDivisionError):
            continue
    found = [each for each in found if math.isfinite(each)]
    if len(found) < draws / 2:
        raise ValueError(f"{len(found)} of {draws} draws gave a number; at least half must; evaluate more samples.")
    low, high = np.percentile(found, [2.5, 97.5])
    value = float(statistic(np.arange(len(labels))))
    return Interval(value, float(np.std(found, ddof=1)), float(low), float(high), len(labels))
