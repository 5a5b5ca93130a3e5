"""Paired tests: the difference of two models on the same samples, and the smallest one that would be detected.

Pairing removes the variation that both share (a hard question is hard for both), so a difference is far more certain
than the two scores. "No difference seen" is a possible result (by the rule of `verdicts`); the interval says how large
an undetected difference may be.
"""

import math
from dataclasses import dataclass

import numpy as np

from lib.metrics import intervals, verdicts
from lib.metrics.verdicts import LEVEL, holm

__all__ = ["LEVEL", "POWER", "Comparison", "holm", "paired"]

POWER = intervals.NORMAL + 0.841621  # size of a difference, in standard errors, that is detected with 80 % power
_CHUNK = 1 << 21  # drawn numbers held at once


@dataclass(frozen=True)
class Comparison:
    """A second model against a first on the same n samples.

    difference: second minus first, with its standard error and 95 % interval from low to high.
    p: probability of a difference at least as large if there were none. test: which test gave it.
    gained, lost: samples on which the second scores higher, and lower. detectable: the difference that this many
    samples show in four of five tries, given how often these two disagree. pairs: how many comparisons p is corrected
    for (`holm`).
    """

    first: float
    second: float
    difference: float
    stderr: float
    low: float
    high: float
    p: float
    n: int
    gained: int
    lost: int
    detectable: float
    test: str
    pairs: int = 1

    @property
    def seen(self) -> bool:
        """Whether both the test and the interval show a difference."""
        return self.p < LEVEL and not self.low <= 0 <= self.high

    def __str__(self):
        test = self.test if self.pairs == 1 else f"{self.test}, Holm of {self.pairs}"
        what = f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p:.2g} ({test}, n={self.n})"
        return f"{what}: {'a difference' if self.seen else 'no difference seen'}"


def paired(first, second, groups=None, *, seed: int = 0) -> Comparison:
    """Compare the per-sample scores `second` [n] with `first` [n], in the same order.

    Right-or-wrong scores of independent samples: McNemar's exact test (1947, doi:10.1007/BF02295996) and the interval
    of Bonett and Price (2012, doi:10.3102/1076998611411915). Other scores of independent samples: Student's t (see
    `verdicts`). Samples that share groups: the paired bootstrap over groups, studentized. Raises ValueError for
    lengths that differ and fewer than two samples.
    """
    first, second = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} scores against {len(second)}; the same samples are needed; evaluate both on them."
        )
    difference, labels = intervals.checked(second - first, groups)
    n, gained, lost = len(difference), int((difference > 0).sum()), int((difference < 0).sum())
    stderr = intervals.clustered(difference, labels)
    binary = set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}
    count = int(labels.max()) + 1
    if binary and (count == n or stderr == 0):  # without any spread a group counts as one sample
        up, down = gained * count // n, lost * count // n
        test, p, (low, high) = "McNemar, exact", mcnemar(up, down), bonett_price(up, down, count)
    else:
        if count == n:
            test, p, reach = "Student's t", verdicts.student(difference), intervals.quantile(n - 1) * stderr
        else:
            test, p, reach = "paired bootstrap", *studentized(difference, labels, seed=seed)
        low, high = difference.mean() - reach, difference.mean() + reach
    values = map(float, (first.mean(), second.mean(), difference.mean(), stderr, low, high, p))
    return Comparison(*values, n, gained, lost, POWER * stderr, test)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of the exact test: under the null hypothesis as many samples are gained as lost.

    2 P(X <= min(gained, lost)) for X binomial of gained + lost with 1/2; 1 where they never disagree.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact  # takes a second to load

    return float(exact([[0, gained], [lost, 0]], exact=True).pvalue)


def bonett_price(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval of a difference of paired shares: Wald's after one more sample of each kind of disagreement."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = intervals.NORMAL * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(up - down - reach, -1.0), min(up - down + reach, 1.0)


def studentized(difference: np.ndarray, labels: np.ndarray, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """(p, half width of the 95 % interval) of a mean difference, by the symmetric bootstrap-t over groups
    (Hall 1988, doi:10.1111/j.2517-6161.1988.tb01706.x).

    Each draw takes as many groups as there are, with replacement; t = (its mean - the mean) / its own standard error.
    Where so few groups differ that one draw in twenty has no spread, Student's t over the groups is used.
    """
    sums, sizes = np.bincount(labels, weights=difference), np.bincount(labels).astype(float)
    average, stderr, count = difference.mean(), intervals.clustered(difference, labels), len(sums)
    if stderr == 0:
        return float(average == 0), 0.0
    from scipy.special import stdtr  # takes 0.3 s to load

    generator, ts = np.random.default_rng(seed), []
    block = max(1, min(draws, _CHUNK // count))
    for start in range(0, draws, block):
        chosen = generator.integers(0, count, (min(block, draws - start), count))
        total, size = sums[chosen].sum(1), sizes[chosen].sum(1)
        drawn = total / size
        squares = np.square(sums[chosen] - drawn[:, None] * sizes[chosen]).sum(1)
        errors = np.sqrt(count / (count - 1) * squares) / size
        ts.append(np.abs(drawn - average) / np.maximum(errors, 1e-12))  # a draw without spread counts as extreme
    ts = np.concatenate(ts)
    if np.quantile(ts, 1 - LEVEL) > 1e6:  # too few groups differ: a draw in twenty has no spread to divide by
        return float(2 * stdtr(count - 1, -abs(average) / stderr)), intervals.quantile(count - 1) * stderr
    p = (1 + (ts >= abs(average) / stderr).sum()) / (1 + len(ts))
    return float(p), float(np.quantile(ts, 1 - LEVEL) * stderr)


def whole(difference, groups) -> tuple[intervals.Interval, float]:
    """(interval, p) of the difference of a metric of all samples together: the percentile bootstrap over
    groups, and the normal test with its standard error.

    difference: takes the positions of the drawn samples, returns second minus first. groups: one label a sample.
    """
    found = intervals.bootstrap(difference, groups)
    p = math.erfc(abs(found.value) / (found.stderr * math.sqrt(2))) if found.stderr > 0 else float(found.value == 0)
    return found, p


def minimum_detectable(n: int, *, disagreement: float = 0.2, spread: float = 1.0) -> float:
    """The difference in accuracy that n samples detect with 80 % power at the 5 % level.

    (1.96 + 0.84) sqrt(disagreement / n), for models that disagree on that share of samples (compressed and original:
    0.05 at 8 bits to 0.4 at 2). spread: of scores that are not right-or-wrong, the size of a typical disagreement.
    Raises ValueError for n below 2 or a share outside 0 to 1.
    """
    if n < 2 or not 0 < disagreement <= 1:
        raise ValueError(
            f"n={n}, disagreement={disagreement}; n >= 2 and a share above 0 up to 1 are allowed; give what you expect."
        )
    return POWER * spread * math.sqrt(disagreement / n)


def retention(compressed, full, chance: float, groups=None) -> intervals.Interval | None:
    """Above-chance retention (compressed - chance) / (full - chance) of paired scores [n], with Fieller's interval
    (1954, doi:10.1111/j.2517-6161.1954.tb00159.x): 1 is no loss, 0 is no better than guessing.

    The r for which the mean of (compressed - chance) - r (full - chance) may be 0: the roots of a quadratic.
    None where the full model itself can't be distinguished from chance, so that nothing can be retained.
    """
    above, labels = intervals.checked(np.asarray(compressed, np.float64) - chance, groups)
    whole = np.asarray(full, np.float64).ravel() - chance
    a, b, n, number = above.mean(), whole.mean(), len(above), int(labels.max()) + 1
    by_group = np.stack([np.bincount(labels, weights=each - each.mean()) for each in (above, whole)])
    (vaa, vab), (_, vbb) = number / (number - 1) * (by_group @ by_group.T) / n**2
    z = intervals.quantile(number - 1)
    square = b * b - z * z * vbb
    if b <= 0 or square <= 0:
        return None
    ratio, middle = a / b, a * b - z * z * vab
    reach = math.sqrt(max(middle**2 - square * (a * a - z * z * vaa), 0.0))
    stderr = math.sqrt(max(vaa - 2 * ratio * vab + ratio**2 * vbb, 0.0)) / b
    low, high = (middle - reach) / square, (middle + reach) / square
    return intervals.Interval(float(ratio), stderr, low, high, n)
