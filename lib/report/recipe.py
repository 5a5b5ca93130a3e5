"""Figures about allocation: where the bits go, and what each group of layers and the embedding cost."""

import matplotlib
import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import labels, selection, style

KINDS = ("q_proj, k_proj, v_proj", "o_proj", "gate_proj, up_proj", "down_proj")


def allocation(table: pd.DataFrame):
    """Heat map of the bits of each group of layers by block (metric bits; labels block, layers)."""
    data = selection.newest(table, "bits")
    if data.empty:
        return ax.placeholder("Where the bits go", "28_allocation")
    blocks = data.dropna(subset=["block"]).assign(block=lambda part: part["block"].astype(int))
    grid = blocks.pivot(index="layers", columns="block", values="value").reindex(KINDS).dropna(how="all")
    other = data[data["block"].isna()]
    low, high = int(data["value"].min()), int(data["value"].max())
    with style.use():
        figure = style.picture(9.6, 2.6)
        axes = figure.add_subplot()
        colours = matplotlib.colormaps["Blues"].resampled(max(2, high - low + 1))
        axes.imshow(grid.to_numpy(float), aspect="auto", cmap=colours, vmin=low - 0.5, vmax=high + 0.8)
        axes.grid(False)
        for (row, column), bits in np.ndenumerate(grid.to_numpy(float)):
            shade = "white" if bits > (low + high) / 2 else style.INK
            axes.annotate(f"{bits:.0f}", (column, row), ha="center", va="center", fontsize=8, color=shade)
        axes.set_yticks(range(len(grid)), labels=grid.index)
        axes.set_xticks(range(0, grid.shape[1], 5), labels=grid.columns[::5])
        axes.set_xlabel("block")
        text = "; ".join(f"{row.layers}: {row.value:.0f} bits" for row in other.itertuples())
        ax.headline(axes, "Where the bits go", f"Bits of each group of layers; {text}.")
    return figure


def sensitivity(table: pd.DataFrame):
    """Divergence of each group of layers alone at the probe's bits (metric sensitivity; labels block, layers)."""
    data = selection.newest(table, "sensitivity").dropna(subset=["block"])
    if data.empty:
        return ax.placeholder("What each group of layers costs", "28_allocation")
    with style.use():
        figure = style.picture(7.6, 3.6)
        axes = figure.add_subplot()
        for kind, method in zip(KINDS, ("none", "rtn", "gptq", "depth")):
            part = data[data["layers"].eq(kind)].sort_values("block")
            look = style.look(method)
            axes.plot(
                part["block"].astype(int), part["value"], marker=look.marker, markersize=4.5, linestyle=look.line,
                color=look.colour, label=kind,
            )  # fmt: skip
        ax.plain_log(axes, "y")
        axes.set(xlabel="block", ylabel="KL divergence, nats a token")
        axes.legend(ncols=2, fontsize=8.5)
        ax.headline(axes, "What each group of layers costs", "The whole model as it was, this group alone at 3 bits.")
    return figure


def embedding(table: pd.DataFrame):
    """Loss of the embedding at each width against its megabytes (metric embedding_loss; labels width, megabytes)."""
    data = selection.newest(table, "embedding_loss")
    if data.empty:
        return ax.placeholder("What the embedding costs", "28_allocation")
    data = data.astype({"width": int, "megabytes": float}).sort_values("megabytes")
    with style.use():
        figure = style.picture(7.6, 3.6)
        axes, look = figure.add_subplot(), style.look("gptq")
        axes.plot(data["megabytes"], data["value"], marker=look.marker, color=look.colour)
        ax.span(axes, "x", [0, *data["megabytes"]], 0.06, False)
        ax.span(axes, "y", data["value"], 0.12, True)
        axes.set(xlabel="embedding and head, MB", ylabel="KL divergence, nats a token")
        ax.headline(axes, "What the embedding costs", "The blocks as they were, the embedding alone rounded.")
        points = list(zip(data["megabytes"], data["value"]))
        labels.place(axes, points, [f"{width} bits" for width in data["width"]], [points])
    return figure
