"""Computes scores from answers, each with its standard error, its baseline and the rows behind it."""

import math
from dataclasses import dataclass, field

from lib.metrics import intervals
from lib.metrics.score import Score
from lib.tasks.task import Outcome, Sample, Task

DRAWS = 200  # of the bootstrap for metrics that are no means


@dataclass(frozen=True)
class Row:
    """One sample of an evaluation: its answers and what they score."""

    id: str
    group: str
    answers: list
    scores: dict[str, float]


@dataclass(eq=False)  # compared by scores alone: seconds differ from run to run
class Evaluation(dict):
    """{metric: Score}, the main metric first, with the data behind it.

    task: name and `data` of the task; rows: one per sample, in the task's order.
    intervals: metric -> 95 % interval; chance, constant: metric -> score of guessing, and of the best constant answer.
    truncated: samples with a prompt cut on the left; empty: generations without text.
    seconds: spent on `asked` samples, the others having come from the cache. engine: its identity.
    requests: hash of all that was asked, prompts and caps, and settings: how the engine chose its tokens (sampling,
    seed, a server's chat template), so that systems can be held to the same.
    """

    task: str
    data: dict
    rows: list[Row] = field(repr=False)
    intervals: dict[str, "intervals.Interval"]
    chance: dict[str, float]
    constant: dict[str, float]
    truncated: int = 0
    asked: int = 0
    seconds: float = 0.0
    engine: str = ""
    requests: str = ""
    settings: str = "greedy"

    @property
    def empty(self) -> int:
        """Generations without text."""
        return sum(isinstance(answer, str) and not answer.strip() for row in self.rows for answer in row.answers)

    @property
    def replaced(self) -> int:
        """Generations with U+FFFD, which replaces bytes that are not valid text."""
        return sum(isinstance(answer, str) and "\ufffd" in answer for row in self.rows for answer in row.answers)

    def table(self):
        """The rows as a DataFrame: id, group, answers, and a column per metric."""
        import pandas as pd  # loads slowly, only for the table

        return pd.DataFrame(
            [{"id": row.id, "group": row.group, "answers": row.answers, **row.scores} for row in self.rows]
        )


def score(
    task: Task, samples: list[Sample], answers: dict[str, list[Outcome | str]]
) -> tuple[dict[str, Score], dict[str, intervals.Interval], list[Row]]:
    """({metric: Score}, {metric: 95 % interval}, rows) of the answered `samples`.

    Standard errors are clustered by `group`; metrics that are no means are bootstrapped over groups. The
    baseline is the better of chance and the best constant answer.
    """
    pairs = [(sample, answers[sample.id]) for sample in samples]
    rows = [Row(sample.id, sample.group, given, task.score(sample, given)) for sample, given in pairs]
    lower, found, spans = task.data.get("lower_is_better", ()), {}, {}
    for metric in task.metrics:
        known = [each[metric] for each in (task.chance, task.constant) if metric in each]
        better = min if metric in lower else max
        baseline = better(known) if known else None
        span = spans[metric] = _interval(metric, task, pairs, rows)
        stderr = span.stderr if math.isfinite(span.stderr) else None
        unit = "share" if 0 <= span.value <= 1 else "points"
        found[metric] = Score(span.value, stderr, len(rows), unit, metric not in lower, baseline)
    return found, spans, rows


def _interval(metric: str, task: Task, pairs: list, rows: list[Row]) -> intervals.Interval:
    """A metric's value and interval over the samples; an interval of zero width for a single sample."""
    groups, function = [row.group for row in rows], task.aggregate.get(metric)
    values = None if function else [row.scores[metric] for row in rows]
    if len(rows) == 1:
        value = float(function(pairs) if function else values[0])
        return intervals.Interval(value, math.nan, value, value, 1)
    if function is None:
        return intervals.mean(values, groups)
    try:
        return intervals.bootstrap(
            lambda places: function([pairs[place] for place in places]), groups, draws=DRAWS, share=True
        )
    except ValueError:  # too few draws define the metric at all, such as F1 without positives
        value = float(function(pairs))
        return intervals.Interval(value, math.nan, -math.inf, math.inf, len(rows))
