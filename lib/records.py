"""Reading the results store: one table over all records, and the guard against unfair comparisons.

Use them as `results.table()` and `results.comparable(table, "bits", metric="perplexity")`.
"""

import json
import re
import warnings
from pathlib import Path

from lib import files, machine
from lib.metrics.score import Score

COLUMNS = ["run", "notebook", "metric", "value", "stderr", "n", "unit", "higher_is_better", "baseline"]
COLUMNS += ["seed", "commit", "dirty", "machine", "threads", "versions", "data_hash", "time", "status"]
# names in records of earlier versions -> today's, for methods and parts of an error
PARTS = {"came_in": "inherited", "added": "own", "taken_back": "cancelled"}
RENAMED = {"rounding": "signround", "refined": "gptq_signround"} | PARTS
CHOICES = ("method", "arm", "rung", "part")
started_here: set[str] = set()  # runs of this process: a notebook sees its own records before it has finished


def table(latest: bool = True):
    """A pandas DataFrame with a row per recorded metric, oldest run first: COLUMNS, then parameters, then labels.

    latest: keep the newest finished run of each (notebook, parameters, seed) only, counting runs that this very
    process is writing as finished; False gives every row of every run. A file that is no record is skipped with a
    warning. Columns that a row's notebook does not have hold None.
    """
    import pandas  # loads slowly, only for the table: recording needs none

    found = newest(documents()) if latest else documents()
    rows = [row for document in found for row in _rows(document)]
    columns = list(dict.fromkeys([*COLUMNS, *(name for d in found for name in d["parameters"])]))
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    rows = [[row.get(column) for column in columns] for row in rows]
    frame = pandas.DataFrame(rows, columns=columns, dtype=object)
    numbers = {name: "float64" for name in ("value", "stderr", "baseline")}
    frame = frame.astype(numbers | {name: "int64" for name in ("n", "seed", "threads")})
    # pandas would turn integers beside a None into floats, and bits=3 into bits=3.0: only full columns get a type
    return frame.astype({name: frame[name].infer_objects().dtype for name in frame if frame[name].notna().all()})


def documents() -> list[dict]:
    """Every record on disk, failed ones included, oldest first."""
    paths = sorted(files.results().glob("*.json")) if files.results().is_dir() else []
    return sorted(filter(None, map(read, paths)), key=lambda document: document["started"])


def newest(documents: list[dict]) -> list[dict]:
    """Of records, oldest first, the newest finished one of each (notebook, parameters, seed); see `table`."""
    done = [d for d in documents if d["status"] in ("finished", "running" if d["run"] in started_here else None)]
    kept = {json.dumps([d["notebook"], d["parameters"], d["seed"]], sort_keys=True): d["run"] for d in done}
    return [d for d in done if d["run"] in kept.values()]


def comparable(frame, factor: str, *, metric: str, require_baseline: bool = False):
    """The rows of `metric`, after checking that they differ only in `factor` (a column).

    Raises ValueError, naming columns and values, where rows differ in any other parameter or label, or in their seeds
    (for times, speeds and energies also in machine and threads), where they were measured on different data, or, with
    `require_baseline`, where a row has no baseline.
    """
    if factor not in frame.columns:
        raise ValueError(f"factor={factor!r} is no column of the table; {files.choices(factor, frame.columns)}")
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise ValueError(f"metric={metric!r} is not in the table; {files.choices(metric, set(frame['metric']))}")
    others = [c for c in frame.columns if c not in COLUMNS] + ["seed"]
    if rows["unit"].map(_timed).any():
        others += ["machine", "threads"]
    _same_everywhere(rows, factor, [c for c in others if c != factor])
    if rows["data_hash"].nunique(dropna=False) > 1:
        found = rows.groupby("data_hash", dropna=False)[factor].agg(lambda values: sorted(set(map(str, values))))
        found = "; ".join(f"{key}: {factor}={', '.join(values)}" for key, values in found.items())
        raise ValueError(f"{metric} rows of different data ({found}); one data hash is allowed; run them on one text.")
    if require_baseline and rows["baseline"].isna().any():
        found = ", ".join(sorted(set(map(str, rows.loc[rows["baseline"].isna(), factor]))))
        raise ValueError(f"{metric} has no baseline for {factor}={found}; every row needs one; record it in the Score.")
    return rows


def _same_everywhere(rows, factor, others):
    """Every value of the factor must hold the same combinations of the other factors."""
    text = rows[[factor, *others]].map(lambda cell: "none" if cell is None or cell != cell else str(cell))
    by_value = {value: part for value, part in text.groupby(factor)}
    for columns in [*([c] for c in others), others]:
        found = {value: frozenset(map(tuple, part[columns].values)) for value, part in by_value.items()}
        if len(set(found.values())) > 1:
            differ = [c for c in others if len({frozenset(part[c]) for part in by_value.values()}) > 1] or columns
            seen = "; ".join(
                f"{factor}={value}: " + ", ".join(f"{c}={'|'.join(sorted(set(part[c])))}" for c in differ)
                for value, part in by_value.items()
            )
            raise ValueError(
                f"rows that differ in {factor} differ also in {', '.join(differ)} ({seen}); one factor may differ; "
                "filter the table to equal values first."
            )


def _timed(unit) -> bool:
    return bool(re.search(r"(^|/)(s|ms)$|^J\b", str(unit)))


def _rows(document):
    """The rows of one record as dicts over the table's columns."""
    shared = {key: document.get(key) for key in ("run", "notebook", "seed", "commit", "dirty", "status")}
    shared["machine"] = machine.label(document["machine"])
    shared["versions"] = json.dumps(document["versions"], sort_keys=True)
    for row in document["rows"]:
        own = {key: value for key, value in row.items() if key != "labels"}
        cells = document["parameters"] | row["labels"]
        cells |= {key: RENAMED[cells[key]] for key in CHOICES if str(cells.get(key)) in RENAMED}
        own["metric"] = PARTS.get(own["metric"], own["metric"])
        yield shared | own | {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in cells.items()}


def read(path: Path) -> dict | None:
    """The document of a record file, or None with a warning where the file holds something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        texts = [document["run"], document["notebook"], document["status"], document["started"]]
        tables = [document["parameters"], document["machine"], document["versions"]]
        rows = document["rows"]
        sound = all(isinstance(text, str) for text in texts) and all(isinstance(part, dict) for part in tables)
        sound = sound and isinstance(document["seed"], int) and isinstance(rows, list)
        sound = sound and all(isinstance(row["labels"], dict) and Score(**_score(row)) for row in rows)
        sound = sound and all(isinstance(row["metric"], str) and isinstance(row["threads"], int) for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sound, document = False, f"{type(error).__name__}: {error}"
    if sound:
        return document
    warnings.warn(
        f"{path} is not a complete record ({document!s:.120}); skipped; delete it or run again.", stacklevel=3
    )
    return None


def _score(row):
    return {key: row[key] for key in ("value", "stderr", "n", "unit", "higher_is_better", "baseline")}
