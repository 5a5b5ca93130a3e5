"""Figures about grids: what bits and sharing a grid bring."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style
from lib.report.ablations import NAMES

TEXTBOOK = {"absmax": ("rtn", "absmax"), "zero_point": ("gptq", "zero-point"), "int8": ("depth", "LLM.int8()")}
SHARED = {"tensor": "matrix", "row": "row", "group": "group"}  # who shares a grid
SHADES = {2: "depth", 3: "rtn", 4: "gptq", 8: "none"}  # the look that stands for a bit width


def weight_histogram(table: pd.DataFrame):
    """Distribution of `weight` (before) and `value` (after rounding), columns of `table`, one row a weight."""
    with style.use():
        figure = style.picture(7.6, 3.2)
        axes = figure.subplots()
        both = table[["weight", "value"]]  # a value may lie beyond the weights, by the rounding of its scale
        edges = np.linspace(both.min(axis=None), both.max(axis=None), 161)
        before, after = style.look("none"), style.look("gptq")
        axes.hist(table["value"], edges, color=after.colour, label="after: values on the grids")
        axes.hist(table["weight"], edges, histtype="step", color=before.colour, label="before", linewidth=1.4)
        axes.set(xlabel="weight", ylabel="number of weights", yscale="log")
        axes.legend(loc="upper left")
        ax.headline(axes, "Weights before and after rounding", f"{len(table):,} weights, logarithmic counts.")
    return figure


def grid_error(table: pd.DataFrame):
    """Relative squared error of the weights (metric weight_error) by group size, and by bits with and without search.

    Labels read: bits, group_size, candidates (1: minimum and maximum).
    """
    data = selection.newest(table, "weight_error").dropna(subset=["bits", "group_size", "value"])
    if data.empty:
        return ax.placeholder("Error by group size and bits", "20_grids")
    data = data.astype({"bits": int, "group_size": int, "candidates": int})
    plain = data[data["candidates"].eq(1)]
    with style.use():
        figure = style.picture(9.6, 3.7)
        left, right = figure.subplots(1, 2, sharey=True)
        for bits, part in plain.groupby("bits"):
            _line(left, part.sort_values("group_size"), "group_size", SHADES.get(bits, str(bits)), f"{bits} bits")
        sizes = sorted(plain["group_size"].unique())
        left.set(xscale="log", xlabel="group size (columns that share a grid)", yscale="log")
        left.set_xticks(sizes, labels=map(str, sizes))
        left.minorticks_off()
        left.set_ylabel("squared error / squared weights")
        left.legend(ncols=2)
        ax.headline(left, "Smaller groups err less", "Range: minimum and maximum. Bars: 95 % intervals.")
        shared = data[data["group_size"].eq(_searched(data))]
        for candidates, part in shared.groupby("candidates"):
            text = "minimum and maximum" if candidates == 1 else f"best of {candidates} ranges"
            _line(right, part.sort_values("bits"), "bits", "rtn" if candidates == 1 else "gptq", text)
        right.set(xlabel="bits")
        right.xaxis.get_major_locator().set_params(integer=True)
        right.legend()
        ax.headline(right, "A searched range errs less", f"Group size {_searched(data)}.")
    return figure


def textbook(table: pd.DataFrame):
    """Absmax against zero-point: error of the weights by who shares a grid, and damage to the whole model at 8 bits.

    Metrics read: textbook_error (labels method, granularity, bits) and textbook_kl (labels method, granularity).
    """
    error, damage = selection.newest(table, "textbook_error"), selection.newest(table, "textbook_kl")
    if error.empty or damage.empty:
        return ax.placeholder("Absmax against zero-point", "20_grids")
    with style.use():
        figure = style.picture(9.6, 3.9)
        left, right = figure.subplots(1, 2)
        places = {name: place for place, name in enumerate(SHARED)}
        for (bits, method), part in error.groupby(["bits", "method"]):
            shade, name = TEXTBOOK[method]
            part = part.assign(place=part["granularity"].map(places)).sort_values("place")
            _line(left, part, "place", shade, name if bits == error["bits"].max() else None)
        for bits, part in error[error["granularity"].eq("group")].groupby("bits"):
            middle = float(np.exp(np.log(part["value"].astype(float)).mean()))  # between the methods
            left.annotate(f"{int(bits)} bits", (places["group"], middle), (9, 0),
                          textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
        left.set_xticks(list(places.values()), labels=[f"one grid a {each}" for each in SHARED.values()])
        left.set(yscale="log", ylabel="squared error / squared weights", xlim=(-0.2, 2.45))
        left.legend(loc="lower left")
        ax.headline(left, "Who shares a grid decides", "One layer's weights. Bars: 95 % intervals.")
        _damage(right, damage)
    return figure


def _damage(axes, damage: pd.DataFrame) -> None:
    """KL divergence of each method, the worst on top, with its interval and its number."""
    damage = damage.sort_values("value", ascending=False)
    for place, row in enumerate(damage.to_dict("records")):
        ax.dot(axes, row, place, style.look(TEXTBOOK[row["method"]][0]), "{:.2g}", log=True)
    ax.lines_of(axes, [f"{TEXTBOOK[m][1]}, {SHARED[g]}" for m, g in zip(damage["method"], damage["granularity"])])
    axes.set(xlabel=NAMES["kl_divergence"])
    axes.margins(x=0.12)
    ax.plain_log(axes, "x")
    ax.headline(axes, "The whole model in 8 bits", "LLM.int8() rounds the inputs too. 95 % intervals.")


def _line(axes, part: pd.DataFrame, x: str, method: str, text: str) -> None:
    ax.line(axes, part[x], part, style.look(method), text, log=True, markersize=5)


def _searched(data: pd.DataFrame) -> int:
    """The group size for which a search was recorded."""
    return int(data.loc[data["candidates"].gt(1), "group_size"].mode().iat[0]) if data["candidates"].gt(1).any() else 64
