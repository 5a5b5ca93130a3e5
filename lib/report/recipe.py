"""Figures about the recipe: how scales move, where the bits go, and what a megabyte buys."""

import matplotlib
import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import field, labels, rows, style

KINDS = ("q_proj, k_proj, v_proj", "o_proj", "gate_proj, up_proj", "down_proj")


def allocation(table: pd.DataFrame):
    """Heat map of the bits of each group of layers by block (metric bits; labels block, layers)."""
    data = rows.newest(table, "bits")
    if data.empty:
        return ax.gap("Where the bits go", "28_allocation")
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
    data = rows.newest(table, "sensitivity").dropna(subset=["block"])
    if data.empty:
        return ax.gap("What each group of layers costs", "28_allocation")
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
    data = rows.newest(table, "embedding_loss")
    if data.empty:
        return ax.gap("What the embedding costs", "28_allocation")
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


def by_megabytes(table: pd.DataFrame):
    """KL divergence against the megabytes of whole artifacts, a curve for each arm, with 95 % intervals.

    Of the runs on record, those on one model and text with most windows (`field.artifacts`): a quick run on another
    text does not join the curve of one in earnest.
    """
    data = field.artifacts(table)
    if data.empty:
        return ax.gap("What a megabyte buys", field.ARTIFACTS)
    with style.use():
        figure = style.picture(7.6, 4.6)
        axes = figure.add_subplot()
        for arm, part in sorted(data.groupby("method"), key=lambda pair: style.order(pair[0])):
            part, look = part.sort_values("megabytes"), style.look(arm)
            joined = look.line if len(part) > 1 else "none"
            ax.line(axes, part["megabytes"], part, look, look.label, log=True, linestyle=joined, markersize=5)
        ax.plain_log(axes, "y")
        axes.set(xlabel="artifact, MB (tokenizer left out)", ylabel="KL divergence, nats a token (lower is better)")
        axes.legend()
        told = f"{rows.measured_on(data)}. Embeddings and head included. Bars: 95 % intervals."
        ax.headline(axes, "What a megabyte buys", told)
    return figure
