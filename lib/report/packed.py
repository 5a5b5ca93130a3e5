"""Figures about packed inference: the layout, products under the roofline, and where a token's time goes."""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from lib.report import axes as ax
from lib.report import selection, style

SHADES = {2: "rtn", 3: "depth", 4: "gptq", 8: "none", 16: "codebook"}
STEPS = ["#dbe7f3", "#f6e3bf", "#d8efe4", "#f3d9e3"]
NOTEBOOK = "40_packed_kernels"
PHASES = {
    "products": ["queries", "output", "gate and up", "down"],
    "head": ["head"],
    "attention": ["attention"],
    "norms, rounding of inputs": ["norms", "embedding"],
}
COLOURS = ["#004488", "#56b4e9", "#cc8f1b", "#bb5566", "#9aa3ad"]


def layout():
    """One unit of 32 columns and 16 rows: which step (four columns) each bit of a byte belongs to, by width."""
    fields = {
        "2 bits": [["0", "1", "2", "3"], ["4", "5", "6", "7"]],
        "3 bits": [["0", "1", "2", "3"], ["4", "5", "6", "7"], list("01234567")],
        "4 bits": [[str(2 * i), str(2 * i + 1)] for i in range(4)],
        "8 bits": [[str(i)] for i in range(8)],
    }
    with style.use():
        figure = style.picture(9.6, 3.4)
        for axes, (name, lines) in zip(figure.subplots(1, 4, sharey=True), fields.items()):
            for place, line in enumerate(lines):
                width = 8 / len(line)
                for at, step in enumerate(line):
                    left = 8 - (at + 1) * width
                    face = STEPS[int(step) % 4]
                    axes.add_patch(Rectangle((left, place), width, 0.86, facecolor=face, edgecolor=style.MUTED, lw=0.7))
                    axes.text(left + width / 2, place + 0.43, step, ha="center", va="center", fontsize=8.5)
            axes.set(xlim=(0, 8), ylim=(8, -0.2), xticks=[], yticks=[], xlabel="bit 7 … bit 0 of a byte")
            axes.grid(False)
            axes.spines[:].set_visible(False)
            ax.headline(axes, name, f"{len(lines)} lines of 64 bytes")
        figure.supylabel("line", fontsize=9, color=style.MUTED)
        ax.footnote(figure, ["Number: the step whose codes these bits hold, four columns of sixteen rows each. Byte "
                             "4 r + c of a line belongs to row r and column c of the step."])  # fmt: skip
    return figure


def speed_by_shape(table: pd.DataFrame):
    """Bytes/s of matrix-vector products by shape and bits, under the bandwidth of memory.

    Metrics read: product_seconds (labels bits, shape, bytes) and bandwidth (bytes/s).
    """
    data, limit = selection.newest(table, "product_seconds"), selection.newest(table, "bandwidth")
    if data.empty or limit.empty:
        return ax.placeholder("Products by shape and bits", NOTEBOOK)
    shapes = list(dict.fromkeys(data.sort_values("bytes")["shape"]))
    with style.use():
        figure = style.picture(8.4, 3.8)
        axes = figure.subplots()
        for bits, part in data.groupby("bits"):
            look = style.look(SHADES[int(bits)])
            places = [shapes.index(shape) for shape in part["shape"]]
            rate = part["bytes"].astype(float) / part["value"].astype(float) / 1e9
            error = rate * ax.half_widths(part) / part["value"].astype(float)
            axes.errorbar(
                places, rate, yerr=error, fmt=look.marker, color=look.colour, capsize=3, label=f"{int(bits)} bits"
            )
        bandwidth = float(limit["value"].iloc[-1]) / 1e9
        axes.axhline(bandwidth, color=style.INK, linewidth=0.9, linestyle=":")
        axes.annotate(f"memory: {bandwidth:.0f} GB/s", (0, bandwidth), (2, 4), textcoords="offset points", fontsize=8.5)
        axes.set_xticks(range(len(shapes)), labels=shapes)
        axes.set(ylabel="bytes of weights read, GB/s", ylim=(0, None), xlim=(-0.5, len(shapes) - 0.5))
        axes.legend(ncols=len(data["bits"].unique()), loc="upper right")
        ax.headline(axes, "How near a product comes to the memory's limit",
                    "Batch 1. Above the line: the matrix still lay in a cache. Bars: 95 % intervals.")  # fmt: skip
    return figure


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
