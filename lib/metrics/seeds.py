"""Differences over seeds: one run can't tell an effect from its seed, several paired runs can.

Seed k gives every architecture the same order of data and the same first values of shared parts, so runs are compared
in pairs, seed by seed, which takes out what the seed does to both.
"""

import math
from collections.abc import Mapping

import numpy as np

from lib.metrics import intervals

LEAST = 3  # seeds for an interval: of two, Student's t makes twelve times their spread


def paired(arm: Mapping[int, float], baseline: Mapping[int, float]) -> intervals.Interval:
    """The mean of `arm` - `baseline` over seeds (seed -> value) with its 95 % interval (Student's t).

    Raises ValueError for arms with other seeds, and for fewer than three.
    """
    if set(arm) != set(baseline):
        only = sorted(set(arm) ^ set(baseline))
        raise ValueError(
            f"seeds {sorted(arm)} and {sorted(baseline)}; pairs need the same ones; run seed {only[0]} of both arms."
        )
    return spread({seed: arm[seed] - baseline[seed] for seed in sorted(arm)})


def spread(values: Mapping[int, float]) -> intervals.Interval:
    """The mean of `values` over seeds with its 95 % interval; ValueError for fewer than three seeds.

    Always Student's: `intervals.mean` takes differences that are all 0 for shares.
    """
    found = np.array([values[seed] for seed in sorted(check(list(values)))], dtype=np.float64)
    stderr = float(found.std(ddof=1)) / math.sqrt(len(found))
    value, reach = float(found.mean()), intervals.quantile(len(found) - 1) * stderr
    return intervals.Interval(value, stderr, value - reach, value + reach, len(found))


def check(seeds: list[int]) -> list[int]:
    """`seeds` themselves; ValueError where no interval over them can be given."""
    if len(set(seeds)) < LEAST or len(set(seeds)) != len(seeds):
        raise ValueError(
            f"seeds={seeds} were given for an interval; intervals over seeds need {LEAST} different ones or more; give "
            "as many, or report single runs without an interval."
        )
    return seeds


def detectable(deviation: float, seeds: int, *, power: float = 0.8) -> float:
    """The least mean difference that `seeds` paired runs show with `power`, at 5 % two-sided.

    deviation: standard deviation of paired differences, such as those of the baseline run twice with other data order.
    The answer of the t test by the noncentral t distribution. Raises ValueError for fewer than three seeds.
    """
    from scipy import optimize, stats  # which take a second to load

    check(list(range(seeds)))
    freedom = seeds - 1
    bound = stats.t.ppf(0.975, freedom)

    def short(effect: float) -> float:
        return stats.nct.sf(bound, freedom, effect) - power

    return float(optimize.brentq(short, 0.1, 100) * deviation / math.sqrt(seeds))
