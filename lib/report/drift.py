"""The figure about drift: how far the layers' inputs have moved, and how much of that the layers take back."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

NAMES = {"gptaq": "GPTAQ", "corrected": "GPTQ, corrected target"}
PARTS = {"inherited": ("none", "inherited: W (X̃ − X)"), "own": ("rtn", "own: (W − Ŵ) X")}


def drift(table: pd.DataFrame):
    """Where a layer's error comes from, and what each method takes back of it, by block.

    Metrics read: drift (label `part`: inherited, added) and cancelled; labels `block` and `method`. The left panel
    shows the parts of the first method in the order of `style.order`.
    """
    title = "What comes in, what a layer adds, what it takes back"
    parts, back = selection.newest(table, "drift"), selection.newest(table, "cancelled")
    if parts.empty or back.empty:
        return ax.placeholder(title, "22_gptq")
    parts, back = (part.assign(block=pd.to_numeric(part["block"])) for part in (parts, back))
    methods = sorted(back["method"].unique(), key=style.order)
    with style.use():
        figure = style.picture(9.6, 3.9)
        left, right = figure.subplots(1, 2)
        shown = parts[parts["method"].eq(methods[0])]
        for name, (shade, text) in PARTS.items():
            _by_block(left, shown[shown["part"].eq(name)], style.look(shade), text)
        left.set(xlabel="block", ylabel="share of the outputs' power", ylim=(0, None))
        ax.headline(left, "Most of the error comes in" if _mostly(shown) else "Where the error comes from",
                    f"{_name(methods[0])}: mean over a block's layers. Bars: 95 % intervals.")  # fmt: skip
        for method in methods:
            _by_block(right, back[back["method"].eq(method)], style.look(method), _name(method))
        right.axhline(0, color=style.MUTED, linewidth=0.8)
        right.set(xlabel="block", ylabel="share of both parts taken back")
        right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %".replace("-", "−"))
        ax.headline(right, "What a layer takes back", "Zero: its own rounding has nothing to do with what came in.")
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_ylim(top=axes.get_ylim()[1] * 1.2)  # room for the legend above the points
            axes.legend(loc="upper left")
    return figure


def _name(method: str) -> str:
    return NAMES.get(method, style.look(method).label)


def _mostly(shown: pd.DataFrame) -> bool:
    """Whether more came in than was added, in the mean over blocks."""
    means = shown.groupby("part")["value"].mean()
    return means["inherited"] > means["own"]


def _by_block(axes, part: pd.DataFrame, look, text: str) -> None:
    part = part.sort_values("block")
    ax.line(axes, part["block"], part, look, text, markersize=4, elinewidth=0.8)
