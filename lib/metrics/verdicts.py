"""The verdict on a paired difference: a gain, a loss, or no difference seen.

Student's t on the paired differences (Student 1908, doi:10.1093/biomet/6.1.1), which is valid for three windows as for
three hundred. Where one table holds several pairs, their p values are corrected together (Holm 1979,
doi:10.2307/4615733), so that the whole table reports a difference that is only noise in at most 5 % of cases.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """The result of a test on n paired differences.

    mean: their mean; above 0 is a gain. p: the probability of a mean at least as far from 0 if there were no
    difference, corrected for `pairs`, the number of comparisons that are read together.
    """

    mean: float
    p: float
    n: int
    pairs: int = 1

    @property
    def seen(self) -> bool:
        """Whether there is a difference, at the 5 % level."""
        return self.p < LEVEL and self.mean != 0

    def __str__(self):
        if not self.seen:
            return "no difference seen"
        return "a gain" if self.mean > 0 else "a loss"


def verdict(gains) -> Verdict:
    """The verdict on `gains` [n], the paired differences; a single sample shows none."""
    gains = np.asarray(gains, np.float64).ravel()
    mean = float(gains.mean()) if len(gains) else 0.0
    return Verdict(mean, student(gains), len(gains))


def verdicts(gains: Mapping) -> dict:
    """The verdicts on several pairs in one table, name -> gains [n], corrected by Holm's method."""
    return holm({name: verdict(each) for name, each in gains.items()})


def divergences(pairs: Mapping) -> dict:
    """name -> (Score, Verdict): by how much the second of two models is nearer to the original than the first.

    pairs: name -> two answers of `divergence.compare` on the same windows, which are the samples. All pairs count as
    one table. Raises ValueError for answers on different windows.
    """
    from lib.metrics import divergence  # which needs torch

    scores = {name: divergence.gain(*pair) for name, pair in pairs.items()}
    gains = {name: (a.divergence - b.divergence).double().mean(1).numpy() for name, (a, b) in pairs.items()}
    found = verdicts(gains)
    return {name: (scores[name], found[name]) for name in pairs}


def student(gains: np.ndarray) -> float:
    """Two-sided p of Student's t for a mean of 0; 1 for fewer than two samples, and for values that are not finite."""
    from scipy.special import stdtr  # takes 0.3 s to load

    if len(gains) < 2 or not np.isfinite(gains).all():
        return 1.0
    if np.ptp(gains) == 0:  # without any spread the formula divides by zero: a constant difference is not chance
        return float(gains[0] == 0)
    t = gains.mean() / (gains.std(ddof=1) / math.sqrt(len(gains)))
    return float(2 * stdtr(len(gains) - 1, -abs(t)))


def holm(found: Mapping) -> dict:
    """The same verdicts (anything with p and pairs) with p corrected for multiple comparisons; keeps the order.

    The k-th smallest of m p values is multiplied by m - k + 1; corrected values never decrease.
    """
    corrected, worst = {}, 0.0
    ordered = sorted(found, key=lambda name: found[name].p)
    for place, name in enumerate(ordered):
        worst = max(worst, min(1.0, (len(ordered) - place) * found[name].p))
        corrected[name] = replace(found[name], p=worst, pairs=len(ordered))
    return {name: corrected[name] for name in found}
