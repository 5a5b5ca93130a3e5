"""The figure about evaluations: scores beside chance and the best constant answer."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "51_evaluate"
READABLE = {"acc": "accuracy", "acc_norm": "accuracy per character", "pass@1": "pass@1"}


def scores(table: pd.DataFrame):
    """Main metric of each task (metric "score", labels task and measured, chance, constant) with its 95 % interval.

    Labels low and high are the interval's ends; a task whose interval is not above the better of chance and constant
    answer is drawn hollow: it shows no skill; one with neither of them is hollow too, and says so. Numbers that are no
    shares of 1 (BLEU) are left out.
    """
    data = selection.newest(table, "score")
    if data.empty or "task" not in data:
        return ax.placeholder("Scores", NOTEBOOK)
    data = data[data["unit"].eq("share")].drop_duplicates("task", keep="last")
    with style.use():
        figure = style.picture(8.2, 1.5 + 0.5 * len(data))
        axes, look = figure.subplots(), style.look("gptq")
        for place, row in enumerate(data.to_dict("records")):
            _score(axes, place, row, look)
        axes.set_yticks(range(len(data)), labels=[_label(row) for row in data.to_dict("records")])
        axes.set(xlabel="score", ylim=(len(data) - 0.5, -0.6), xlim=(-0.03, 1.03))
        for label, marker, colour in (("chance", "|", style.MUTED), ("best constant answer", "x", "#bb5566")):
            axes.plot([], [], marker, color=colour, label=label, markersize=9, markeredgewidth=1.6)
        axes.plot([], [], look.marker, color=look.colour, label="model, 95 % interval")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5 / (0.35 + 0.5 * len(data))), ncols=3)
        ax.headline(axes, "What the model can do", "Hollow: not shown to beat chance and the best constant answer.")
    return figure


def skilled(row: dict) -> bool | None:
    """Whether a record's interval lies above chance and the best constant answer, as far as they are known.

    None where neither is: without a baseline no score shows skill, whatever it is.
    """
    known = [float(row[name]) for name in ("chance", "constant") if pd.notna(row.get(name))]
    return float(row["low"]) > max(known) if known else None


def _label(row: dict) -> str:
    measured = f"{row['task']}\n{READABLE.get(row['measured'], row['measured'])}, n={row['n']}"
    return measured if skilled(row) is not None else f"{measured}, no baseline"


def _score(axes, place: int, row: dict, look) -> None:
    """One task: its interval, its value in figures, and what it has to beat."""
    low, high = float(row["low"]), float(row["high"])
    skill = skilled(row)
    axes.plot([low, high], [place, place], color=look.colour, linewidth=1.6, zorder=2)
    axes.plot(row["value"], place, look.marker, color=look.colour, zorder=4,
              markerfacecolor=look.colour if skill else "white")  # fmt: skip
    axes.annotate(f"{row['value']:.2f}", (row["value"], place), (0, 7), textcoords="offset points", ha="center",
                  fontsize=8.5)  # fmt: skip
    for name, marker, colour in (("chance", "|", style.MUTED), ("constant", "x", "#bb5566")):
        if pd.notna(row.get(name)):
            axes.plot(float(row[name]), place, marker, color=colour, markersize=9, markeredgewidth=1.6, zorder=3)
