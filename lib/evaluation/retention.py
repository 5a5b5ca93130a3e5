"""Retention: the share of the original's score above a model-free floor that a compressed model keeps."""

import numpy as np

from lib.evaluation.scores import Evaluation
from lib.metrics import intervals, paired_tests
from lib.tasks.task import Task


def above(reference: Evaluation, metric: str) -> tuple[float | None, str]:
    """(floor, its name): chance, the best constant answer where chance is not known; (None, why) without either, and
    where lower is better, so that nothing lies above a floor."""
    if metric in reference.data.get("lower_is_better", ()):
        return None, f"none: lower is better for {metric}"
    for known, name in ((reference.chance, "chance"), (reference.constant, "the best constant answer")):
        if metric in known:
            return float(known[metric]), f"{name} ({known[metric]:.3f})"
    return None, f"none: neither chance nor a constant answer is known for {metric}"


def of(
    reference: tuple[str, Evaluation], system: Evaluation, metric: str, scores: tuple | None, task: Task | None
) -> tuple[intervals.Interval | None, str]:
    """(retention of `system`, above what it is), or (None, why there is none).

    reference: its name and evaluation. scores: the per-sample scores (reference, system) [n]; None for a number that
    only all samples of `task` together have, whose retention is bootstrapped over groups.
    """
    name, first = reference
    floor, basis = above(first, metric)
    if floor is None:
        return None, basis
    groups = [row.group for row in first.rows]
    if scores is None:
        found = _whole(first, system, task, metric, floor)
    else:
        found = paired_tests.retention(scores[1], scores[0], floor, groups)
    return (
        (None, f"none: the reference {name!r} is not told from {basis}") if found is None else (found, f"above {basis}")
    )


def _whole(first: Evaluation, second: Evaluation, task: Task, metric: str, floor: float) -> intervals.Interval | None:
    """(second - floor) / (first - floor) with its bootstrap over groups; None where more than 1 draw in 40 puts the
    first at the floor or below, since the ratio's interval would be unbounded."""
    samples = {sample.id: sample for sample in task.samples}
    function, denominators = task.aggregate[metric], []
    pairs = [[(samples[row.id], row.answers) for row in system.rows] for system in (first, second)]

    def ratio(places) -> float:
        before, after = (float(function([system[place] for place in places])) - floor for system in pairs)
        denominators.append(before)
        return after / before

    try:
        found = intervals.bootstrap(ratio, [row.group for row in first.rows])
    except (ZeroDivisionError, ValueError):  # the first is exactly at the floor, with all samples or in most draws
        return None
    return found if np.percentile(denominators, 2.5) > 0 else None
