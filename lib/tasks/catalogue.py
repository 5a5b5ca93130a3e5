"""One table of all tasks: data, where they are pinned, licence, citation, and what a score has to beat."""

import contextlib
import io

from lib import tasks
from lib.sources import tasks as source
from lib.sources.benchmarks import BENCHMARKS
from lib.tasks.form import Form

COLUMNS = ("task", "group", "data", "pinned", "licence", "citation", "n", "metric", "chance", "constant")


def table(names=None):
    """A DataFrame with a row per task (of `names`, all by default) and the columns `COLUMNS`.

    metric: the main one. chance, constant: what guessing, and what the best constant answer scores on all n samples;
    empty where a task has none, and with n where its data are not at hand. pinned: the Hub's commit, else "not pinned"
    and where the files are from. About half a minute where all data are there: each is read.
    Raises ValueError for an unknown task.
    """
    import pandas as pd  # loads slowly, only for the table

    known = {}
    rows = [_row(name, tasks.find(name)[0], known) for name in names or tasks.TASKS]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(name: str, form: Form, known: dict) -> dict:
    benchmark, metric = BENCHMARKS.get(form.data), form.metrics[0]
    found = dict(task=name, group=tasks.group(name), data=form.data, metric=metric, pinned=_pinned(benchmark))
    found |= dict(licence="Apache-2.0", citation="Thimble")
    if benchmark is not None:
        found |= dict(licence=benchmark.licence, citation=benchmark.citation)
    key = name if tasks.find(name)[1] else (form.data, form.chance, form.constant)  # a guard's data are ToxicChat's
    if key not in known:
        known[key] = _beside(name, form)
    n, chance, constant = known[key]
    return found | dict(n=n, chance=chance.get(metric), constant=constant.get(metric))


def _beside(name: str, form: Form) -> tuple:
    """(n, chance, constant) of a task on the local data; (None, {}, {}) where they are not there."""
    if form.data in BENCHMARKS and not source.local(form.data, form.splits):
        return None, {}, {}
    with contextlib.redirect_stdout(io.StringIO()):  # without printing what is read
        task = tasks.load(name, shots=0, allow_execution=True)
    return len(task.samples), task.chance, task.constant


def _pinned(benchmark) -> str:
    if benchmark is None:
        return "in this package"
    if benchmark.revision:
        return f"{benchmark.hub} @ {benchmark.revision[:12]}"
    return f"not pinned; files from {benchmark.origin}"
