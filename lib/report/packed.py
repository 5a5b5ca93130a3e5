"""The figure about packed inference: where a token's time goes."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "40_packed_kernels"
PHASES = {
    "products": ["queries", "output", "gate and up", "down"],
    "head": ["head"],
    "attention": ["attention"],
    "norms, rounding of inputs": ["norms", "embedding"],
}
COLOURS = ["#004488", "#56b4e9", "#cc8f1b", "#bb5566", "#9aa3ad"]


def where_time_goes(table: pd.DataFrame):
    """Milliseconds of a token by phase, one bar a system: the packed engine's phases, the rest of the others.

    Metrics read: phase_seconds (labels arm, phase, seconds per token).
    """
    data = selection.newest(table, "phase_seconds")
    if data.empty:
        return ax.placeholder("Where a token's time goes", NOTEBOOK)
    arms = list(dict.fromkeys(data["arm"]))
    named = {phase: group for group, phases in PHASES.items() for phase in phases}
    data = data.assign(group=data["phase"].map(lambda phase: named.get(phase, phase)))
    groups = list(dict.fromkeys([*PHASES, *data["group"]]))
    with style.use():
        figure = style.picture(8.4, 1.7 + 0.5 * len(arms))
        axes, left = figure.subplots(), np.zeros(len(arms))
        for group, colour in zip(groups, COLOURS):
            part = data[data["group"].eq(group)].groupby("arm")["value"].sum().reindex(arms).fillna(0).to_numpy() * 1e3
            axes.barh(arms, part, left=left, color=colour, label=group, height=0.62)
            left = left + part
        for place, total in enumerate(left):
            axes.annotate(
                f"{total:.3g} ms", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        axes.set(xlabel="milliseconds per token", xlim=(0, 1.15 * left.max()))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.28))
        ax.headline(axes, "Where a token's time goes", "Decoding at batch 1.")
    return figure
