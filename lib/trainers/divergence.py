"""Whether a loss rises far above what it had reached: told at the step at which it does, while training goes on.

A loss that is not finite ends a training (`loop.train_`). One that merely rises does not: a spike often heals by
itself within some steps, and only who trains knows whether the rest of the schedule is worth its time. So a rise is
told when it happens, and `History.rises` keeps it; `stop` of `loop.train_` can end a training early.
"""

import statistics
from dataclasses import dataclass, field

WINDOW = 8  # steps of which the mean is looked at
SHARE, DEVIATIONS = 0.2, 4  # a rise is more than this share of the lowest mean, and than this many of its deviations


class Diverged(ValueError):
    """A loss or a gradient was not finite."""


@dataclass(frozen=True)
class Rise:
    """The mean loss of the `WINDOW` steps that end at `step`, and the lowest before, whose steps end at `best`."""

    step: int
    level: float
    best: int
    lowest: float

    def __str__(self) -> str:
        return (
            f"the training diverges: the loss of the {WINDOW} steps up to {self.step} is {self.level:.4g} on average; "
            f"it was {self.lowest:.4g} at step {self.best}; it goes on, but a lower learning_rate may serve better"
        )


@dataclass
class Watch:
    """Sees the losses of a training one after another."""

    losses: list[float] = field(default_factory=list)
    best: int = 0
    lowest: float = float("inf")
    rises: list[Rise] = field(default_factory=list)
    _deviation: float = 0.0
    _above: bool = False

    def see(self, loss: float) -> Rise | None:
        """The rise that this step's `loss` completes, told once until the loss is back."""
        self.losses.append(loss)
        step, last = len(self.losses), self.losses[-WINDOW:]
        if step < WINDOW:
            return None
        level = statistics.fmean(last)
        if level < self.lowest:
            self.best, self.lowest, self._deviation, self._above = step, level, statistics.pstdev(last), False
            return None
        far = level - self.lowest > max(SHARE * abs(self.lowest), DEVIATIONS * self._deviation)
        if not far or self._above:
            return None
        self._above = True
        self.rises.append(Rise(step, level, self.best, self.lowest))
        return self.rises[-1]


def rises(losses: list[float]) -> list[Rise]:
    """All rises of a training, from its losses, one a step."""
    watch = Watch()
    return [rise for rise in map(watch.see, losses) if rise]
