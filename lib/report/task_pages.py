"""A page of the report for each group of tasks: every score on record, with its interval and what it has to beat."""

from pathlib import Path

import pandas as pd

from lib import files, tasks
from lib.report import evaluation, pages, selection, style, tables

LABELS = ["task", "measured", "low", "high", "chance", "constant"]  # of records of the metric "score"
ALT = "Scores with their intervals, beside chance and the best constant answer; the numbers are in the table."
SKILL = {True: "shown", False: "not shown", None: "no baseline"}


def build(table: pd.DataFrame, folder: Path, chapter) -> list[dict]:
    """Write tasks-GROUP.html and its figure for each group of `tasks.GROUPS` into `folder`.

    chapter: the `chapters.Chapter` that the pages lead back to. Returns title, file and number of scores of each group;
    groups without a score have no file.
    """
    found = []
    for group in tasks.GROUPS:
        data, name = scores(table, group), f"tasks-{group.replace(' ', '-')}"
        found.append({"title": group, "file": f"{name}.html" if len(data) else "", "count": len(data)})
        if data.empty:
            continue
        for path in style.save(evaluation.scores(data), name):
            files.write_bytes(folder / "files" / path.name, path.read_bytes())
        title = f"Tasks: {group}"
        pages.write(
            folder / f"{name}.html", "tasks", title=title, chapter=chapter, table=tables.html(readable(data)),
            figure={"name": name, "caption": "The newest run.", "alt": ALT, "width": "", "height": ""},
        )  # fmt: skip
    return found


def scores(table: pd.DataFrame, group: str) -> pd.DataFrame:
    """The newest record of each task of a group, metric, model and number of samples; column `of` names the model."""
    data = selection.complete(table)
    data = data.reindex(columns=list(dict.fromkeys([*data.columns, *LABELS]))).copy()
    data = data[data["metric"].eq("score") & data["status"].isin(selection.SHOWN) & data["task"].notna()]
    data = data[data["task"].map(_group).eq(group)].sort_values("time", kind="stable")
    names = [_name(row) for row in data.to_dict("records")]
    return data.assign(of=names).drop_duplicates(["task", "measured", "of", "n"], keep="last")


def readable(data: pd.DataFrame) -> pd.DataFrame:
    """What a page shows of `scores`, a line each."""
    lines = []
    for row in data.sort_values(["task", "of"]).to_dict("records"):
        lines.append({
            "Task": row["task"],
            "Model": row["of"],
            "Metric": evaluation.READABLE.get(row["measured"], row["measured"]),
            "Score": f"{row['value']:.3f}" + (f" ± {row['stderr']:.3f}" if pd.notna(row["stderr"]) else ""),
            "95 % interval": f"{float(row['low']):.3f} to {float(row['high']):.3f}" if pd.notna(row["low"]) else "",
            "n": f"{row['n']:.0f}",
            "Chance": _number(row["chance"]),
            "Constant answer": _number(row["constant"]),
            "Skill": SKILL[evaluation.skilled(row)],
        })  # fmt: skip
    return pd.DataFrame(lines)


def _number(value) -> str:
    return f"{float(value):.3f}" if pd.notna(value) else ""


def _name(row: dict) -> str:
    """The model of a record: the configuration of a benchmark, else what was loaded."""
    if pd.isna(row["method"]):
        return Path(str(row["model"])).name
    whole = {factor: int(row[factor]) for factor in ("bits", "blocks") if pd.notna(row[factor])}
    return selection.name(row | whole)


def _group(task: str) -> str | None:
    try:
        return tasks.group(task)
    except ValueError:
        return None  # a task that this version no longer has
