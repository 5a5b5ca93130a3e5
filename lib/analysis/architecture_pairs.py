"""Architectures compared in pairs over seeds, and measured in blocks of the plain model.

A record is one training: a dict with arm, blocks, seed and what was measured (`trainers.architecture_study`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lib.metrics import intervals, seeds, verdicts

Values = dict[int, float]  # seed -> value


@dataclass(frozen=True)
class Pair:
    """An arm beside its rival: how much smaller its value is. gain: the mean over seeds with its 95 % interval."""

    gain: intervals.Interval
    verdict: verdicts.Verdict

    @property
    def bound(self) -> float:
        """The largest difference, in either direction, that the interval holds."""
        return max(abs(self.gain.low), abs(self.gain.high))

    def __str__(self):
        return str(self.verdict) if self.verdict.seen else f"no difference seen, and none above {self.bound:.2g}"


def values(records: Iterable[dict], arm: str, blocks: int, name: str = "loss") -> Values:
    """`name` of each seed of an arm with so many blocks; diverged trainings have none."""
    found = {each["seed"]: each for each in records if (each["arm"], each["blocks"]) == (arm, blocks)}
    return {seed: each[name] for seed, each in sorted(found.items()) if each.get(name) is not None}


def compared(sides: Mapping[str, tuple[Values, Values]]) -> dict[str, Pair]:
    """The pairs of one table, name -> (arm, rival), both seed -> value of which less is better; read together (Holm).

    Of each pair the seeds that both have count. Raises ValueError where these are fewer than three.
    """
    gains = {}
    for name, (arm, rival) in sides.items():
        gains[name] = {seed: rival[seed] - arm[seed] for seed in sorted(arm.keys() & rival.keys())}
    spreads = {name: seeds.spread(each) for name, each in gains.items()}
    found = verdicts.verdicts({name: np.array(list(each.values())) for name, each in gains.items()})
    return {name: Pair(spreads[name], found[name]) for name in sides}


@dataclass(frozen=True)
class Curve:
    """Loss of plain models by blocks, for each seed a + b ln(blocks) by least squares. fits: seed -> (a, b)."""

    fits: dict[int, tuple[float, float]]
    least: int
    most: int

    def at(self, blocks: float) -> Values:
        """Each seed's loss at a number of blocks, which need not be whole."""
        return {seed: a + b * math.log(blocks) for seed, (a, b) in self.fits.items()}

    def blocks(self, losses: Values) -> Values:
        """The number of plain blocks with each seed's loss; seeds that both have.

        Raises ValueError where more blocks do not lower the loss of every seed: no number of them is worth anything.
        """
        if rising := [seed for seed, (_, b) in self.fits.items() if b >= 0]:
            raise ValueError(
                f"the plain loss does not fall with blocks at seed {rising[0]}; a falling curve is needed to say what "
                "a block is worth; train longer, or at depths further apart."
            )
        shared = sorted(losses.keys() & self.fits.keys())
        return {seed: math.exp((losses[seed] - self.fits[seed][0]) / self.fits[seed][1]) for seed in shared}


def curve(records: Iterable[dict], depths: Iterable[int], arm: str = "plain", name: str = "loss") -> Curve:
    """The curve of `arm` over `depths`, of the seeds that have all of them.

    Raises ValueError for fewer than two depths or three seeds.
    """
    depths = sorted(depths)
    found = {depth: values(records, arm, depth, name) for depth in depths}
    shared = sorted(set.intersection(*(set(each) for each in found.values()))) if found else []
    if len(depths) < 2:
        raise ValueError(f"{len(depths)} depths of {arm!r}; 2 or more make a curve; train another one.")
    seeds.check(shared)
    logs = np.log(depths)
    fits = {seed: np.polyfit(logs, [found[depth][seed] for depth in depths], 1)[::-1] for seed in shared}
    return Curve({seed: (float(a), float(b)) for seed, (a, b) in fits.items()}, depths[0], depths[-1])


def worth(plain: Curve, losses: Values) -> intervals.Interval:
    """How many plain blocks have the loss of a variant (seed -> loss), with its 95 % interval over seeds."""
    return seeds.spread(plain.blocks(losses))


def blocks_in(seconds: float, plain: Mapping[int, float]) -> float:
    """How many plain blocks take `seconds`, by a line through plain models' times (blocks -> seconds).

    Raises ValueError for fewer than two depths, and for times that do not grow with blocks.
    """
    if len(plain) < 2:
        raise ValueError(f"times of {len(plain)} depths; 2 or more make a line; measure another one.")
    slope, start = np.polyfit(list(plain), list(plain.values()), 1)
    if slope <= 1e-6 * max(plain.values()) or seconds <= start:
        raise ValueError("plain models with more blocks took no longer; a busy machine may be why; measure again.")
    return float((seconds - start) / slope)
