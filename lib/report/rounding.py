"""Figures about learned rounding: why the direction matters, how it is learned, which codes change, what it brings."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "24_rounding"
RUNGS = {  # the name of each variant, and the look that stands for it
    "nearest": "rtn",
    "searched ranges": "none",
    "GPTQ": "gptq",
    "learned": "depth",
    "GPTQ, then learned": "signs",
}


def curves(table: pd.DataFrame):
    """Loss of each step's windows (metric step_loss, labels step and start)."""
    data = selection.newest(table, "step_loss")
    if data.empty:
        return ax.placeholder("The loss, step by step", NOTEBOOK)
    data = data.astype({"step": int, "value": float})
    with style.use():
        figure = style.picture(7.6, 3.3)
        axes = figure.subplots()
        for start, part in data.groupby("start", sort=False):
            part, look = part.sort_values("step"), style.look(RUNGS.get(start, start))
            axes.plot(part["step"], part["value"], color=look.colour, alpha=0.35, linewidth=0.9)
            smooth = part["value"].rolling(7, min_periods=1, center=True).mean()
            axes.plot(part["step"], smooth, color=look.colour, linestyle=look.line, linewidth=2, label=f"from {start}")
        axes.set(xlabel="step", ylabel="squared error of the step's window")
        axes.set_ylim(bottom=0)
        axes.legend()
        title = f"The loss over {data['step'].max() + 1} steps"
        ax.headline(axes, title, "Thin: single steps, whose windows differ. Thick: mean of seven neighbours.")
    return figure


def offsets(table: pd.DataFrame):
    """Learned offsets V, and the share of codes that changed by distance from the middle between two codes.

    table: one row a weight, with the columns offset (-0.5 to 0.5 codes), distance (0 to 0.5 codes) and changed.
    """
    with style.use():
        figure = style.picture(9.6, 3.5)
        left, right = figure.subplots(1, 2)
        look = style.look("gptq")
        left.hist(table["offset"], np.linspace(-0.5, 0.5, 81), color=look.colour)
        left.set(xlabel="learned offset V, in codes", ylabel="number of weights")
        ax.headline(left, "Most offsets stay small", f"{len(table):,} weights.")
        edges = np.linspace(0, 0.5, 21)
        places = np.clip(np.digitize(table["distance"], edges) - 1, 0, len(edges) - 2)
        shares = table["changed"].astype(float).groupby(places).mean().reindex(range(len(edges) - 1), fill_value=0.0)
        middles = (edges[:-1] + edges[1:]) / 2
        right.bar(middles, 100 * shares, width=0.9 * (edges[1] - edges[0]), color=look.colour)
        right.set(xlabel="distance of the weight from the middle between two codes", ylabel="codes that changed, %")
        right.set_ylim(bottom=0)
        changed = 100 * table["changed"].astype(float).mean()
        ax.headline(right, "What changes lay near the middle", f"{changed:.1f} % of all codes changed.")
    return figure


def ladder(table: pd.DataFrame):
    """Error of the block's outputs on held-out windows (metric relative_loss) by variant (label `rung`) and bits."""
    data = selection.newest(table, "relative_loss")
    if data.empty:
        return ax.placeholder("What learning brings", NOTEBOOK)
    data = data.astype({"bits": int, "value": float, "stderr": float})
    widths = sorted(data["bits"].unique(), reverse=True)
    with style.use():
        figure = style.picture(9.6, 1.3 + 0.38 * data["rung"].nunique())
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
        names = list(dict.fromkeys(data["rung"]))
        for axes, bits in zip(panels, widths):
            part = data[data["bits"].eq(bits)].drop_duplicates("rung", keep="last").set_index("rung")
            for place, name in enumerate(names):
                if name in part.index:
                    ax.dot(axes, part.loc[name], place, style.look(RUNGS.get(name, name)))
            axes.set(xlabel="error of the block's outputs (1: nearest)")
            axes.margins(x=0.12)
            ax.headline(axes, f"{bits} bits", "Held-out windows, 95 % intervals over them.")
        ax.lines_of(panels[0], names)
    return figure
