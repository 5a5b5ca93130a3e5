"""The figure about compressed versions against the original: paired differences."""

import pandas as pd

from lib.report import axes as ax
from lib.report import style

NOTEBOOK = "52_compare"


def forest(table: pd.DataFrame):
    """Forest plot of the rows of metric "difference": a line per version and task.

    Labels read: arm, task, low, high (the interval), seen, gained, lost, and n and value of the record.
    """
    data = table[table["metric"].eq("difference")] if "metric" in table else table
    if data.empty:
        return ax.placeholder("Differences from the original", NOTEBOOK)
    ticks, places = _lines(data)
    with style.use():
        figure = style.picture(8.6, 1.5 + 0.36 * len(ticks))
        axes = figure.subplots()
        axes.axvline(0, color=style.INK, linewidth=1)
        for place, row in zip(places, data.to_dict("records")):
            look = style.look("depth" if row["seen"] else "none")
            low, high, value = (100 * float(row[key]) for key in ("low", "high", "value"))
            bar = [[value - low], [high - value]]
            face = look.colour if row["seen"] else "white"
            axes.errorbar(value, place, xerr=bar, fmt="o", color=look.colour, markerfacecolor=face, capsize=3)
            said = "a difference" if row["seen"] else "no difference seen"
            note = f"{value:+.1f}  (+{int(row['gained'])} −{int(row['lost'])})  {said}"
            axes.annotate(
                note.replace("-", "−"), (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5
            )
        axes.set_yticks([place for place, _ in ticks], labels=ax.names([text for _, text in ticks]))
        _finish(axes, ticks)
        axes.set_xlabel("score minus the original's, in points of 100")
        ax.headline(
            axes,
            "Against the original, sample by sample",
            "Paired differences with 95 % intervals; +gained −lost samples.",
        )
    return figure


def _lines(data: pd.DataFrame) -> tuple[list[tuple[float, str]], list[float]]:
    """([(place, label)], the place of each row): tasks apart where there is more than one."""
    tasks, places, ticks, place = list(dict.fromkeys(data["task"])), {}, [], 0.0
    for task in tasks:
        for row in data[data["task"].eq(task)].to_dict("records"):
            places[task, row["arm"]] = place
            ticks.append((place, row["arm"] if len(tasks) == 1 else f"{task}: {row['arm']}"))
            place += 1
        place += 0.5
    return ticks, [places[row["task"], row["arm"]] for row in data.to_dict("records")]


def _finish(axes, ticks: list) -> None:
    axes.set_ylim(ticks[-1][0] + 0.7, -0.8)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
