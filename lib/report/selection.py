"""Which rows of the results a report shows: the newest run of each configuration, one comparison at a time."""

from pathlib import Path

import pandas as pd

from lib import files
from lib.batches import batch
from lib.report import style

BENCHMARK = "50_benchmark"
SETTING = ["model", "text", "windows", "data_hash"]  # two rows are comparable only when these are equal
FACTORS = ["method", "bits", "group_size", "blocks", "calibration_windows"]  # what makes a configuration
COMPARED = "perplexity"  # what every configuration is asked
UNCALIBRATED = ["none", "rtn"]
UNGROUPED = ["none", "depth"]
SHOWN = ["finished", "running"]  # `results.table()` holds a running run only where this very process is that run
COLUMNS = ["run", "notebook", "metric", "value", "stderr", "n", "unit", "higher_is_better", "baseline", "seed"]
COLUMNS += ["commit", "dirty", "machine", "threads", "versions", "data_hash", "time", "status", "arm", "score"]
COLUMNS += ["layer", "block", "model", "text", "windows", "engine", *FACTORS]


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column that the report reads; absent ones are empty."""
    whole = table.reindex(columns=list(dict.fromkeys([*table.columns, *COLUMNS])))
    return whole.copy()  # in one piece: a column that is added to hundreds of loose ones makes pandas warn


def benchmarks(table: pd.DataFrame) -> pd.DataFrame:
    """All rows of the benchmark notebook, with factors that a method does not have set to 0 and a readable `label`."""
    rows = complete(table)
    rows = rows[rows["notebook"].astype(str).str.contains(BENCHMARK) & rows["method"].notna()].copy()
    for factor in FACTORS[1:]:
        rows[factor] = pd.to_numeric(rows[factor]).fillna(0).astype(int)
    rows.loc[rows["method"].isin(UNCALIBRATED), "calibration_windows"] = 0
    rows.loc[rows["method"].isin(UNGROUPED), ["group_size", "bits"]] = [0, 16]
    # what a run was compared on is what it had loaded when that was measured; tasks and prompts that some runs read
    # after it make no other setting. Runs without it: their last rows, when everything was loaded
    compared = rows[rows["metric"].eq(COMPARED)].groupby("run")["data_hash"].last()
    last = rows.groupby("run")["data_hash"].transform("last")
    rows["data_hash"] = rows["run"].map(compared).fillna(last)
    rows["label"] = _labels(rows)
    return rows.sort_values("time", kind="stable")


def _labels(rows: pd.DataFrame) -> list[str]:
    """Names such as `GPTQ 3 bits`; group size and calibration are named only where they differ within a method."""
    varying = {
        method: [f for f in ("group_size", "calibration_windows") if part[f].nunique() > 1]
        for method, part in rows.groupby("method")
    }
    return [name(row, varying[row["method"]]) for row in rows[[*FACTORS, "engine"]].to_dict("records")]


def name(row: dict, also: list[str] = ()) -> str:
    """The label of one configuration, with the factors in `also` spelled out."""
    method = row["method"]
    label = style.look(method).label
    if method == "depth":
        label += f" -{row['blocks']} block" + "s" * (row["blocks"] != 1)
    elif method != "none":
        label += f" {row['bits']} bits"
    if row.get("engine") == "packed":
        label += ", packed"
    if "group_size" in also:
        label += f", groups of {row['group_size']}"
    if "calibration_windows" in also:
        label += f", {row['calibration_windows']} windows"
    return label


def settings(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The benchmark rows, a table per setting (model, text, data, windows), the one with most configurations first."""
    rows = benchmarks(table)
    # what varies only between settings needs no mention inside one
    parts = [part.assign(label=_labels(part)) for _, part in rows.groupby(SETTING, dropna=False)]
    return sorted(parts, key=lambda part: (part["label"].nunique(), part["time"].max()), reverse=True)


def largest(data: pd.DataFrame, by: list[str], size=len) -> pd.DataFrame:
    """The rows of one group (equal values of the columns `by`): the one of largest `size`, the newest of equals.

    Rows of other groups may not stand beside them.
    """
    parts = [part for _, part in data.groupby(by, dropna=False, sort=False)]
    return max(parts, key=lambda part: (size(part), part["time"].max()))


def main(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the setting with most configurations (the newest of equals): what a single figure shows."""
    return next(iter(settings(table)), benchmarks(table))


def current(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the newest run of each configuration, where that run finished.

    When the newest run failed, its configuration is left out: an older run would show old numbers.
    """
    newest = rows.drop_duplicates("label", keep="last")
    newest = newest[newest["status"].isin(SHOWN)]
    return rows[rows["run"].isin(newest["run"])]


def missing(table: pd.DataFrame) -> list[str]:
    """Labels without a finished run: what failed, what `make report` promises for this setting, and the original."""
    rows = main(table)
    present = set(current(rows)["label"])
    wanted = set(rows["label"]) | {"Original"}
    for each in promised():
        if rows.empty or all(str(each.get(key)) == str(rows[key].iloc[-1]) for key in ("model", "text")):
            wanted.add(name(each))
    # a label may spell out more ("GPTQ 3 bits, groups of 32"): it stands for the plain one too
    absent = {label for label in wanted - present if not any(have.startswith(f"{label},") for have in present)}
    return sorted(absent, key=_rank)


def reported(path: Path | None = None) -> list:
    """The runs of a batch file (`notebooks/batches/report.yaml`, what `make report` runs); none without a batch."""
    try:
        return batch.read(path or files.ROOT / "notebooks" / "batches" / "report.yaml")
    except (ValueError, OSError):
        return []


def promised(path: Path | None = None) -> list[dict]:
    """The parameters of each benchmark run that is `reported`."""
    runs = [run for run in reported(path) if run.notebook.stem == BENCHMARK]
    return [batch.defaults(run.notebook) | run.parameters for run in runs]


def _rank(label: str) -> tuple:
    names = [each.label for each in style.LOOKS.values()]
    word, *rest = label.split()
    number = next((int(part) for part in rest if part.lstrip("-").isdigit()), 0)
    return names.index(word) if word in names else len(names), word, -number, label


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration of one setting, indexed by label; the numbers that figures and tables show.

    Columns: the factors, `run`, and for each metric `m` its `m`, `m_stderr`, `m_n`, `m_baseline`, `m_better`
    (True when higher is better); `m_original` and `m_original_stderr` hold the original timed in the same run.
    """
    rows = current(main(table))
    rows = rows.assign(metric=rows["metric"].astype(str) + rows["arm"].map({"original": "_original"}).fillna(""))
    rows = rows.drop_duplicates(["label", "metric"], keep="last")
    fields = {"value": "", "stderr": "_stderr", "n": "_n", "baseline": "_baseline", "higher_is_better": "_better"}
    parts = [rows.drop_duplicates("label").set_index("label")[[*FACTORS, "run"]]]
    for field, suffix in fields.items():
        pivot = rows.pivot(index="label", columns="metric", values=field)
        parts.append((pivot if field == "higher_is_better" else pivot.astype(float)).add_suffix(suffix))
    return pd.concat(parts, axis=1).loc[sorted(parts[0].index, key=_rank)]


def having(table: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """`wide`, only the configurations with a value, finite or infinite, of every one of these metrics."""
    data = wide(table)
    data = data.reindex(columns=list(dict.fromkeys([*data.columns, *metrics])))
    return data.dropna(subset=list(metrics)).copy()


def absent(table: pd.DataFrame) -> list[str]:
    """The sentence under a figure or table about what has no finished run; none when all is there."""
    labels = missing(table)
    return [f"No finished run of: {', '.join(labels)}."] if labels else []


def newest(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of `metric` in the newest run that recorded it; none when that run did not finish."""
    rows = complete(table)
    rows = rows[rows["metric"].eq(metric)].sort_values("time", kind="stable")
    rows = rows[rows["run"].eq(rows["run"].iloc[-1])] if len(rows) else rows
    return rows[rows["status"].isin(SHOWN)]


def title(table: pd.DataFrame) -> str:
    """What a comparison was measured on, e.g. `smollm2-135m-instruct, packaged text, 24 windows`."""
    rows = main(table)
    if rows.empty:
        return "no benchmark run yet"
    last = rows.iloc[-1]
    model = str(last["model"]).rstrip("/").rsplit("/", 1)[-1]
    return f"{model} on {last['text']} text, {float(last['windows']):.0f} windows"


def measured_on(data: pd.DataFrame) -> str:
    """What rows of one model and text were measured on: `tiny-model on packaged text, 12 to 24 windows by notebook`."""
    low, high = int(data["windows"].min()), int(data["windows"].max())
    count = f"{low} windows" if low == high else f"{low} to {high} windows"
    differ = " by notebook" if low != high and data["notebook"].nunique() > 1 else ""
    model = str(data["model"].iloc[0]).rstrip("/").rpartition("/")[2]
    return f"{model} on {data['text'].iloc[0]} text, {count}{differ}"
