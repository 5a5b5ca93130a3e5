"""The figure about phones: the competition's scores by depth, beside chance."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "46_phone"


def scores(table: pd.DataFrame):
    """Scores of the competition's tasks by removed blocks, with 95 % intervals and chance; a panel a task."""
    data = selection.newest(table, "competition_score")
    title = "What is left without some blocks"
    if data.empty:
        return ax.placeholder(title, NOTEBOOK)
    names = list(dict.fromkeys(data["task"]))
    with style.use():
        figure = style.picture(2.6 * len(names) + 1, 3.2)
        for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names):
            part = data[data["task"].eq(name)].drop_duplicates("removed_blocks", keep="last")
            part = part.sort_values("removed_blocks")
            span = [part["value"] - part["low"], part["high"] - part["value"]]
            axes.errorbar(part["removed_blocks"], part["value"], span, fmt="o", capsize=3)
            chance = part["chance"].dropna()
            if len(chance):
                axes.axhline(chance.iloc[-1], color="black", linestyle="--", linewidth=0.8)
            axes.set(xlabel="blocks removed", ylim=(-0.02, 1.02))
            ax.headline(axes, name, f"n={part['n'].iloc[-1]:.0f}; dashed: chance; bars: 95 %.")
    return figure
