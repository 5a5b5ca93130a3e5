"""Figures over depth: which blocks matter, and where in a block the error of quantization sits."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import rows, style

SCORES = {"leave_one_out": "Leave one out", "block_influence": "Block influence"}
MARKED = 4  # so many of the least important blocks are marked, in the order in which they would go


def layer_importance(table: pd.DataFrame):
    """Importance of each block by each score, side by side; the blocks that would be removed first are numbered."""
    title = "Importance of each block"
    data = rows.newest(table, "block_importance").dropna(subset=["block", "value"])
    if data.empty:
        return ax.gap(title, "30_depth_pruning")
    scores = sorted(data["score"].unique(), key=lambda s: (list(SCORES).index(s) if s in SCORES else len(SCORES), s))
    with style.use():
        figure = style.picture(9.6, 3.9)
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for axes, score in zip(panels, scores):
            part = data[data["score"].eq(score)].sort_values("block", key=pd.to_numeric)
            _importance(axes, part)
            unit = f", {part['unit'].iloc[0]}" if isinstance(part["unit"].iloc[0], str) else ""
            axes.set(xlabel="block", ylabel=SCORES.get(score, score).lower() + unit)
            marked = f"filled and numbered: the {min(MARKED, len(part))} to remove first"
            ax.headline(axes, SCORES.get(score, score), f"{marked}. Bars: 95 % intervals.")
        absent = [SCORES[score] for score in SCORES if score not in scores]
        ax.footnote(figure, [f"No finished run of: {', '.join(absent)}."] if absent else [])
    return figure


def _importance(axes, part: pd.DataFrame) -> None:
    """One panel: a point with its interval per block, the least important filled and numbered from 1."""
    blocks, values = part["block"].astype(float).to_numpy(), part["value"].astype(float).to_numpy()
    log = ax.is_wide(values, 20)
    look, first = style.look("gptq"), np.argsort(values, kind="stable")[:MARKED]
    bars = np.array([ax.interval(v, e, log) for v, e in zip(values, part["stderr"].astype(float))]).T
    axes.errorbar(
        blocks, values, yerr=bars, fmt=look.marker, color=look.colour, markerfacecolor="white", capsize=2, elinewidth=1,
    )  # fmt: skip
    for rank, index in enumerate(first, start=1):
        at, colour = (blocks[index], values[index]), style.look("depth").colour
        axes.plot(*at, look.marker, color=colour, markersize=11.5, zorder=4)
        axes.text(*at, str(rank), ha="center", va="center_baseline", fontsize=8, color="white", weight="bold", zorder=5)
    axes.margins(y=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if log:
        ax.plain_log(axes, "y")


def layer_error(table: pd.DataFrame):
    """Relative output error of every linear by block, one panel per kind of layer, one line per method."""
    title = "Where the error sits"
    data = rows.newest(table, "layer_error").dropna(subset=["block", "value"])
    if data.empty:
        return ax.gap(title, "22_gptq")
    data = data.assign(kind=data["layer"].astype(str).str.rpartition(".")[2], block=pd.to_numeric(data["block"]))
    kinds, methods = list(dict.fromkeys(data["kind"])), sorted(data["method"].unique(), key=style.order)
    columns = min(4, len(kinds) + 1)
    lines = -(-(len(kinds) + 1) // columns)  # one more panel holds the legend
    with style.use():
        figure = style.picture(9.6, 0.9 + 2.1 * lines)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, kind in zip(panels, kinds):
            _errors(axes, data[data["kind"].eq(kind)], methods)
            axes.set_title(kind, fontsize=9.5, fontweight="normal")
        if ax.is_wide(data["value"]):
            for axes in panels[: len(kinds)]:
                ax.plain_log(axes, "y")
        _legend(panels[len(kinds)], panels[0])
        for axes in panels[len(kinds) :]:
            axes.set_axis_off()
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.supxlabel("block", fontsize=9.5, color=style.MUTED)
        figure.supylabel("relative output error", fontsize=9.5, color=style.MUTED)
    return figure


def _errors(axes, part: pd.DataFrame, methods: list[str]) -> None:
    for method in methods:
        line, look = part[part["method"].eq(method)].sort_values("block"), style.look(method)
        bars = np.array([ax.interval(v, e, True) for v, e in zip(line["value"], line["stderr"].astype(float))])
        axes.errorbar(
            line["block"], line["value"], yerr=bars.reshape(-1, 2).T, fmt=look.marker, linestyle=look.line,
            color=look.colour, markersize=3.4, linewidth=1.2, elinewidth=0.8, label=look.label,
        )  # fmt: skip


def _legend(empty, full) -> None:
    """The legend in the panel that no layer needs."""
    handles, labels = full.get_legend_handles_labels()
    empty.legend(handles, labels, loc="center left", title="method", alignment="left", fontsize=10)
