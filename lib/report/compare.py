"""Figures about compressed versions against the original: paired differences, what is left, which samples flipped."""

import pandas as pd

from lib.report import axes as ax
from lib.report import style

NOTEBOOK = "52_compare"
FLIPS = {
    "kept": ("none", "unchanged"),
    "lost": ("depth", "right before, wrong now"),
    "gained": ("best", "wrong before, right now"),
}


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


def retention(table: pd.DataFrame):
    """Dot plot of the rows of metric "retention": the share of the original's score above chance that is left.

    Labels read: arm, task, low, high.
    """
    data = table[table["metric"].eq("retention")] if "metric" in table else table
    if data.empty:
        return ax.placeholder("What is left above chance", NOTEBOOK)
    ticks, places = _lines(data)
    with style.use():
        figure = style.picture(7.6, 1.5 + 0.36 * len(ticks))
        axes = figure.subplots()
        for border, text in ((0, "chance"), (100, "original")):
            axes.axvline(border, color=style.MUTED, linewidth=1, linestyle=":")
            axes.annotate(
                text, (border, 0), (3, 3), ("data", "axes fraction"), "offset points", fontsize=8, color=style.MUTED
            )
        for place, row in zip(places, data.to_dict("records")):
            low, high, value = (100 * float(row[key]) for key in ("low", "high", "value"))
            colour = style.look("gptq").colour
            axes.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
            axes.annotate(
                f"{value:.0f} %", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8.5
            )
        axes.set_yticks([place for place, _ in ticks], labels=ax.names([text for _, text in ticks]))
        _finish(axes, ticks)
        axes.set_xlabel("(score − chance) / (original − chance), in %")
        ax.headline(
            axes, "What is left above chance", "100 % is the original, 0 % is guessing. 95 % intervals (Fieller)."
        )
    return figure


def margins(table: pd.DataFrame):
    """Margins of the right answer before and after, a point a sample; `table` has the columns arm, before, after.

    A margin is positive where the right answer wins: samples that change sides have flipped.
    """
    if table.empty:
        return ax.placeholder("Which samples flipped", NOTEBOOK)
    arms = list(dict.fromkeys(table["arm"]))
    with style.use():
        figure = style.picture(4.3 * len(arms) + 0.4, 4.2)
        panels = figure.subplots(1, len(arms), sharex=True, sharey=True, squeeze=False)[0]
        for axes, arm in zip(panels, arms):
            part = table[table["arm"].eq(arm)]
            won, wins = part["before"] > 0, part["after"] > 0
            for kind, chosen in (("kept", won == wins), ("lost", won & ~wins), ("gained", ~won & wins)):
                look, label = style.look(FLIPS[kind][0]), f"{FLIPS[kind][1]}: {int(chosen.sum())}"
                drawn = dict(marker="o", alpha=0.35) if kind == "kept" else dict(marker=look.marker, alpha=0.9)
                before, after = part.loc[chosen, "before"], part.loc[chosen, "after"]
                axes.plot(before, after, color=look.colour, linestyle="", markersize=4, label=label, **drawn)
            axes.axhline(0, color=style.MUTED, linewidth=0.8)
            axes.axvline(0, color=style.MUTED, linewidth=0.8)
            axes.axline((0, 0), slope=1, color=style.MUTED, linewidth=0.8, linestyle=":")
            axes.set_xlabel("margin of the right answer in the original, nats")
            axes.legend(loc="best", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")
            ax.headline(axes, arm, f"{len(part)} samples; on the dotted line nothing changed.")
        panels[0].set_ylabel("margin after compression, nats")
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
