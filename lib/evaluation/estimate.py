"""Estimates, before an evaluation runs, how long it takes and how small a difference it can detect."""

from dataclasses import dataclass

from lib.evaluation.run import engine_of
from lib.metrics import paired_tests
from lib.tasks.task import Task


@dataclass(frozen=True)
class Estimate:
    """Samples, tokens to read (shared ones once) and to generate at most, seconds (None: unknown), and `detectable`.

    detectable: the difference between two models, of a metric between 0 and 1, that this many samples show.
    """

    task: str
    samples: int
    read: int | None
    generated: int | None
    seconds: float | None
    detectable: float

    def __str__(self):
        if self.seconds is None:
            cost = "an engine that tells no time"
        else:
            about = "at most" if self.generated else "about"
            cost = f"{self.read:,} tokens to read, {about} {_time(self.seconds)}"
        return f"{self.task}: {self.samples} samples, {cost}; shows differences of {100 * self.detectable:.1f} points"


def before(engine, task: Task, *, limit: int | None = None, disagreement: float = 0.2) -> Estimate:
    """Cost and resolution of evaluating `engine` (or a model) on a task; a local model is timed on a pass or two.

    disagreement: the expected fraction of samples on which the two compared models differ.
    """
    engine = engine_of(engine)
    samples = task.samples[:limit]
    detectable = paired_tests.minimum_detectable(max(2, len(samples)), disagreement=disagreement)
    requests = [request for sample in samples for request in sample.requests]
    if not hasattr(engine, "tokens"):
        return Estimate(task.name, len(samples), None, None, None, detectable)
    read, generated = engine.tokens(requests)
    reading, writing = engine.seconds_per_token()
    seconds = read * reading + generated * writing
    return Estimate(task.name, len(samples), read, generated, seconds, detectable)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
