"""The results store: one JSON file per run, one table over all of them, and guards against unfair comparisons.

run = results.start("50_benchmark", globals())   # all parameters of the notebook are read from its variables
run.record("perplexity", score)                  # score is a metrics.score.Score
run.claim("4 bits keep most of it", kept > 0.7, kept=kept)
run.finish()
table = results.table()                    # a row per recorded metric; parameters and labels are columns
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from lib import claims, files, machine, sources, tokenization
from lib.metrics import meanwhile, rapl
from lib.metrics.score import Score
from lib.records import COLUMNS, comparable, newest, read, started_here, table

__all__ = ["COLUMNS", "Run", "close", "comparable", "newest", "start", "table"]

RUN_ID = "THIMBLE_RUN_ID"  # set by the sweep: the same configuration overwrites its record instead of adding one


class Run:
    """One execution of a notebook; made by `start`. As a context manager it ends "finished", or "failed" on an error.

    Attributes: id (name of the record without .json), path, document (what the file holds).
    """

    def __init__(self, document: dict):
        self.document = document
        self.id = document["run"]
        self.path = files.results() / f"{self.id}.json"
        self._watch, self._meter = meanwhile.Watch(), rapl.Meter()
        self._rows: list[str] = []  # as they stand in the file: encoding all of them for each new one took the time
        self._save()

    def record(self, metric: str, score: Score, /, **labels) -> Score:
        """Add one row and rewrite the file; returns the score so that a cell can show it.

        labels: further columns of this row (layer="model.layers.0", arm="original").
        Raises TypeError for anything but a Score, ValueError for a label that is a column of every record, for a
        label that is no plain value, and for a run that has ended.
        """
        if not isinstance(score, Score):
            raise TypeError(
                f"{metric}={score!r} is a {type(score).__name__}; a Score is allowed, so that every number has its "
                "error and unit; use metrics.score.exact(value, unit) or from_values(values, unit)."
            )
        if self.document["status"] != "running":
            raise ValueError(f"run {self.id} is {self.document['status']}; a running one records; start a new run.")
        _refuse_reserved(labels, "label")
        inputs = sources.used()
        row = dict(metric=metric, value=score.value, stderr=score.stderr, n=score.n, unit=score.unit)
        row |= dict(higher_is_better=score.higher_is_better, baseline=score.baseline)
        row |= dict(labels={name: _plain(name, value) for name, value in labels.items()})
        row |= dict(threads=machine.threads(), data_hash=_data_hash(inputs), time=_now())
        self.document["inputs"] = inputs
        self.document["rows"].append(row)
        self._save()
        return score

    def claim(self, sentence: str, holds, /, *, clock: bool = False, **numbers) -> bool:
        """State `sentence`, which holds if `holds` is true, with the numbers behind it; returns whether it holds.

        clock: the numbers are measured times or depend on one. A claim that does not hold is printed and recorded, and
        the notebook goes on. Raises ClaimError only under `make test`, for the committed defaults, without a clock.
        """
        made = claims.made(sentence, holds, numbers, clock)
        self.document.setdefault("claims", []).append(made.row)
        self._save()
        if not made.holds and not clock and claims.must_hold(self.document["notebook"], self.parameters):
            raise claims.ClaimError(str(made))
        print(made)
        return made.holds

    def table(self):
        """The rows of this run alone, as `results.table` shows them."""
        rows = table()
        return rows[rows["run"].eq(self.id)]

    @property
    def parameters(self) -> dict:
        """The notebook's parameters, the seed among them."""
        return self.document["parameters"] | {"seed": self.document["seed"]}

    def finish(self, status: str = "finished") -> None:
        """Close the record; a second call changes nothing."""
        if self.document["status"] == "running":
            self.document |= {"status": status, "inputs": sources.used(), "finished": _now()}
            # a time that was taken while others held the cores says little: the record tells
            self.document["meanwhile"] = self._watch.end().labels()
            self.document["energy"] = self._meter.end()
            self._save()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.finish("finished" if kind is None else "failed")

    def _save(self):
        for row in self.document["rows"][len(self._rows) :]:
            self._rows.append(json.dumps(row, indent=1, ensure_ascii=False).replace("\n", "\n  "))
        text = json.dumps(self.document | {"rows": []}, indent=1, ensure_ascii=False)
        if self._rows:  # no text in JSON holds a line break, so that only the document's own key begins such a line
            text = text.replace('\n "rows": []', '\n "rows": [\n  ' + ",\n  ".join(self._rows) + "\n ]")
        files.write_text(self.path, text)


def start(notebook: str, parameters: Mapping | None = None, seed: int = 0) -> Run:
    """Open the record of a run of `notebook` with its `parameters` (plain values; a `seed` among them is the seed).

    parameters: in a notebook pass `globals()`: the names in its cell tagged `parameters` are the parameters, with the
    present values of these variables, whoever set them (papermill, a user, the cell itself).
    Raises FileNotFoundError where variables are given and the notebook is not found, ValueError for a name that is
    no file name, a parameter called like a column of every record, or a value that is not plain; PermissionError
    where the results folder can't be written, before any work is done.
    """
    if not re.fullmatch(r"[\w.-]+", notebook):
        raise ValueError(
            f"notebook={notebook!r}; letters, digits, '_', '-' and '.' are allowed; give its name without a path."
        )
    parameters = _named(notebook, parameters or {})
    seed = parameters.pop("seed", seed)
    _refuse_reserved(parameters, "parameter")
    # taken out of the environment: processes that this notebook starts must not write over its record
    name = os.environ.pop(RUN_ID, None) or f"{notebook}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    files.check_writable(files.results() / f"{name}.json", bytes_needed=1 << 20)
    started_here.add(name)
    document = dict(format=1, run=name, notebook=notebook, status="running", started=_now(), finished=None)
    document |= dict(parameters={key: _plain(key, value) for key, value in parameters.items()}, seed=int(seed))
    document |= machine.commit() | dict(
        machine=machine.describe(), threads=machine.threads(), versions=machine.versions()
    )
    return Run(document | dict(inputs=sources.used(), rows=[]))


def _named(notebook: str, given: Mapping) -> dict:
    """The parameters among `given`: all of them, or those of the notebook's tagged cell where all variables came."""
    if "__builtins__" not in given:
        return dict(given)
    document = json.loads(claims.notebook_file(notebook).read_text(encoding="utf-8"))
    return {name: given[name] for name in claims.literals(document)}


def close(run: str, status: str) -> Path | None:
    """Set the status of a record whose process ended without `finish`; returns its path, None where there is none."""
    path = files.results() / f"{run}.json"
    document = read(path) if path.exists() else None
    if document is None:
        return None
    if document["status"] == "running":
        files.write_text(path, json.dumps(document | {"status": status, "finished": _now()}, indent=1))
    return path


def _data_hash(inputs: list[dict]) -> str | None:
    """Short hash over the texts and tasks loaded; models are a factor of their own, not data. None without data."""
    loaded = {(str(i.get("kind")), str(i.get("sha256"))) for i in inputs if i.get("kind") != "model"}
    return hashlib.sha256(json.dumps(sorted(loaded)).encode()).hexdigest()[:12] if loaded else None


def _refuse_reserved(names: Mapping, what: str):
    taken = [name for name in names if name in COLUMNS]
    if taken:
        raise ValueError(
            f"{what} {taken[0]!r} is a column of every record; other names are allowed; rename it. "
            f"Taken: {', '.join(COLUMNS)}."
        )


def _plain(name, value):
    """`value` as JSON holds it; numpy and torch scalars become Python numbers."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    try:
        return json.loads(tokenization.mend(json.dumps(value, ensure_ascii=False)))
    except TypeError:
        raise ValueError(
            f"{name}={value!r} is a {type(value).__name__}; numbers, texts, booleans, None and lists are allowed; "
            "give its name or size instead."
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
