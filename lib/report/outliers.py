"""Figures about outlier features: which they are, what one of them does to a token in 8 bits, what the split saves."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "21_outliers"
KINDS = {"q_proj": "Inputs of query, key and value", "down_proj": "Inputs of the MLP's last layer"}
# how the inputs are multiplied -> the look and the words of a line
WAYS = {
    "all in 8 bits": ("rtn", "all inputs in 8 bits"),
    "split": ("gptq", "outliers split off"),
    "as they are": ("none", "inputs as they are (weights alone)"),
}


def token(table: pd.DataFrame, threshold: float):
    """One token's inputs in the order of their size, with what 8 bits can tell apart with and without its outliers.

    table: columns `magnitude` (of every input feature) and `outlier` (whether the split takes it out).
    """
    data = table.sort_values("magnitude", ascending=False, ignore_index=True)
    rest = data.loc[~data["outlier"], "magnitude"]
    with style.use():
        figure = style.picture(8.4, 4.0)
        axes, place = figure.subplots(), np.arange(1, len(data) + 1)
        for out, method, text in (
            (False, "gptq", "input features"),
            (True, "depth", "split off (outliers in some token)"),
        ):
            chosen = data["outlier"].eq(out)
            axes.plot(
                place[chosen], data.loc[chosen, "magnitude"], ".", color=style.look(method).colour, label=text,
                markersize=7 if out else 4,
            )  # fmt: skip
        ends = (("all in 8 bits", data["magnitude"].max()), ("split", rest.max()))
        for name, largest in ends:
            half, (method, _) = largest / 254, WAYS[name]
            lost = int((data["magnitude"] if name != "split" else rest).le(half).sum())
            look = style.look(method)
            words = "with all of them" if name != "split" else "without the outliers"
            axes.axhline(half, color=look.colour, linestyle="--", label=f"half a step {words}: {lost:,} inputs vanish")
        axes.axhline(threshold, color=style.INK, linewidth=0.8)
        axes.set(xlabel="input features of one token, the largest first", ylabel="magnitude")
        axes.set_ylim(max(data["magnitude"].quantile(0.02), 1e-4), data["magnitude"].max() * 12)  # room for the legend
        ax.plain_log(axes, "y")
        axes.legend(loc="upper right")
        ax.headline(axes, "Why a few features cost all others their precision",
                    "What lies below half a step is rounded to zero. Solid line: the threshold.")  # fmt: skip
    return figure


def split_error(table: pd.DataFrame):
    """Output error of each layer by what happens to its inputs (label `inputs`), with 95 % intervals.

    Metric read: split_error; labels layer, block, inputs (one of `WAYS`).
    """
    data = selection.newest(table, "split_error")
    if data.empty:
        return ax.placeholder("What the split saves", NOTEBOOK)
    with style.use():
        figure = style.picture(9.6, 4.0)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (kind, title) in zip(panels, KINDS.items()):
            part = data[data["layer"].str.endswith(kind)]
            for way, (method, text) in WAYS.items():
                _line(axes, part[part["inputs"].eq(way)].sort_values("block"), style.look(method), text)
            axes.set(xlabel="block", yscale="log")
            axes.xaxis.get_major_locator().set_params(integer=True)
            middle = part.groupby("inputs")["value"].median()
            saved = middle.get("all in 8 bits", np.nan) / middle.get("split", np.nan)
            ax.headline(
                axes, title, f"The split divides the median block's error by {saved:.1f}. Bars: 95 % intervals."
            )
        panels[0].set_ylabel("squared error / squared output, mean over tokens")
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(low, high * 5)
        panels[0].legend(loc="upper left")
    return figure


def _line(axes, part: pd.DataFrame, look, text: str) -> None:
    ax.line(axes, part["block"], part, look, text, log=True, markersize=4.5, elinewidth=0.9)
