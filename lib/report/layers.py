"""Where in the model, and where in a block, the error of quantization sits."""

import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style


def layer_error(table: pd.DataFrame):
    """Relative output error of every linear by block, one panel per kind of layer, one line per method."""
    title = "Where the error sits"
    data = selection.newest(table, "layer_error").dropna(subset=["block", "value"])
    if data.empty:
        return ax.placeholder(title, "22_gptq")
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
        thin = dict(markersize=3.4, linewidth=1.2, elinewidth=0.8)
        ax.line(axes, line["block"], line, look, look.label, log=True, **thin)


def _legend(empty, full) -> None:
    """The legend in the panel that no layer needs."""
    handles, labels = full.get_legend_handles_labels()
    empty.legend(handles, labels, loc="center left", title="method", alignment="left", fontsize=10)
