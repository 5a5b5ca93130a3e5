"""Compares evaluations on the same samples: each system with the first, and the samples whose answers changed."""

import math
from dataclasses import dataclass

import numpy as np

from lib.evaluation import retention
from lib.evaluation.scores import Evaluation
from lib.metrics import guards, intervals, paired_tests
from lib.metrics.paired_tests import Comparison
from lib.metrics.score import Score
from lib.tasks.task import Generation, Likelihood, Outcome, Sample, Task


@dataclass(frozen=True)
class Compared:
    """One system against the system named `reference`: the paired difference, and the marks that its score must carry.

    retention: fraction of the reference's score above chance, or above the best constant answer where chance is not
    known. basis: above which of them ("above chance (0.250)"), or why there is no retention ("none: ...").
    """

    comparison: Comparison
    retention: intervals.Interval | None
    marks: tuple[str, ...]
    reference: str
    basis: str

    @property
    def difference(self) -> Score:
        """The paired difference as a `Score`, to be recorded."""
        found = self.comparison
        return Score(found.difference, found.stderr, found.n, "difference", None, 0.0)

    @property
    def retained(self) -> Score | None:
        """The retention as a `Score`, to be recorded; its baseline is the reference's own, 1."""
        kept = self.retention
        return None if kept is None else Score(kept.value, kept.stderr, kept.n, "share", True, 1.0)


def against(systems: dict[str, Evaluation], metric: str | None = None, task: Task | None = None) -> dict[str, Compared]:
    """Compare every system with the first one, the reference. metric: the main one by default.

    task: needed for a metric that is no mean over samples (F1, corpus BLEU), whose difference is bootstrapped.
    Raises ValueError where the systems differ in anything but the model (see `guards.same_conditions`).
    """
    guards.same_conditions(systems)
    (first_name, reference), *others = systems.items()
    metric = metric or next(iter(reference))
    if metric not in reference:
        raise ValueError(f"metric={metric!r}; {', '.join(reference)} are allowed for {reference.task}; choose one.")
    groups, found = [row.group for row in reference.rows], {}
    for name, system in others:
        scores = None
        if task is not None and metric in task.aggregate:
            comparison = _whole(reference, system, task, metric, groups)
        else:
            scores = _scores(reference, metric), _scores(system, metric)
            comparison = paired_tests.paired(*scores, groups)
        retained, basis = retention.of((first_name, reference), system, metric, scores, task)
        found[name] = Compared(comparison, retained, tuple(guards.marks(system, metric)), first_name, basis)
    return found


def _scores(evaluation: Evaluation, metric: str) -> list[float]:
    missing = [row.id for row in evaluation.rows if metric not in row.scores]
    if missing:
        raise ValueError(f"metric={metric!r} is no number of single samples ({missing[0]!r}); give its task too.")
    values = [row.scores[metric] for row in evaluation.rows]
    if not math.isclose(float(np.mean(values)), evaluation[metric].value, rel_tol=1e-6, abs_tol=1e-9):
        raise ValueError(
            f"metric={metric!r} is {evaluation[metric].value:.3f} of all samples together, and {np.mean(values):.3f} "
            f"as the mean over samples, which is another number; give the task of {evaluation.task!r} as task=."
        )
    return values


def _whole(first: Evaluation, second: Evaluation, task: Task, metric: str, groups: list[str]) -> Comparison:
    """The difference of a metric of all samples together, bootstrapped over groups."""
    samples = {sample.id: sample for sample in task.samples}
    function = task.aggregate[metric]
    pairs = [[(samples[row.id], row.answers) for row in system.rows] for system in (first, second)]

    def difference(places) -> float:
        before, after = ([system[place] for place in places] for system in pairs)
        return function(after) - function(before)

    found, p = paired_tests.whole(difference, groups)
    changed = [(row.scores.get(metric), other.scores.get(metric)) for row, other in zip(first.rows, second.rows)]
    gained, lost = (sum(a is not None and sign * (b - a) > 0 for a, b in changed) for sign in (1, -1))
    detectable = paired_tests.POWER * found.stderr
    values = (first[metric].value, second[metric].value, found.value, found.stderr, found.low, found.high, p)
    return Comparison(*values, found.n, gained, lost, detectable, "bootstrap")


def flips(task: Task, first: Evaluation, second: Evaluation, metric: str | None = None):
    """The samples whose score changed, as a DataFrame: id, group, before, after (scores), the end of the prompt, the
    answers of both.

    metric: the first that single samples have, by default. Raises ValueError for one that only all samples have.
    """
    import pandas as pd  # loads slowly, only for the table

    single = list(first.rows[0].scores)
    metric = metric or next(each for each in first if each in single)
    if metric not in single:
        raise ValueError(
            f"metric={metric!r} is no number of single samples; {', '.join(single)} are for {task.name}; choose one."
        )
    samples = {sample.id: sample for sample in task.samples}
    rows = []
    for old, new in zip(first.rows, second.rows):
        before, after = old.scores[metric], new.scores[metric]
        if before != after:
            found = dict(id=old.id, group=old.group, before=before, after=after, prompt=prompt(samples[old.id])[-300:])
            rows.append(found | dict(answer_before=_said(task, old), answer_after=_said(task, new)))
    return pd.DataFrame(rows, columns=["id", "group", "before", "after", "prompt", "answer_before", "answer_after"])


def prompt(sample: Sample) -> str:
    """The prompt of a sample, before its answer."""
    request = sample.requests[0]
    return request.prompt if isinstance(request, Generation) else request.context


def has_margins(task: Task) -> bool:
    """Whether all samples are choices with one right answer, as `margins` needs."""
    return all(
        isinstance(sample.target, dict)
        and isinstance(sample.target.get("answer"), int)
        and all(isinstance(request, Likelihood) for request in sample.requests)
        for sample in task.samples
    )


def margins(task: Task, evaluation: Evaluation) -> np.ndarray:
    """Nats [n] by which the right answer is more probable than the best wrong one; negative where it loses.

    Raises ValueError for a task that is no multiple choice with one right answer.
    """
    samples = {sample.id: sample for sample in task.samples}
    found = []
    for row in evaluation.rows:
        target = samples[row.id].target
        right = target.get("answer") if isinstance(target, dict) else None
        if not isinstance(right, int) or not all(isinstance(each, Outcome) for each in row.answers):
            raise ValueError(f"sample {row.id!r} of {task.name} is no choice with one right answer; take such a task.")
        logprobs = np.array([each.logprob for each in row.answers])
        found.append(logprobs[right] - np.delete(logprobs, right).max())
    return np.array(found)


def _said(task: Task, row) -> str:
    """The answer: the most probable continuation, or else the generated text."""
    offered = [place for place, answer in enumerate(row.answers) if isinstance(answer, Outcome)]
    if not offered:
        return row.answers[0]
    sample = next(sample for sample in task.samples if sample.id == row.id)
    best = max(offered, key=lambda place: row.answers[place].logprob)
    return sample.requests[best].continuation.strip()
