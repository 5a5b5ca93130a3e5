"""The figures, each `figure(table) -> matplotlib Figure` of the rows of `lib.results.table()`.

A figure shows one setting (model, text, windows): the one with most configurations, named in its second line.
What has no finished run is shown as a gap, never as an older number and never as an error.
"""

import math

import pandas as pd

from lib.report import axes as ax
from lib.report import labels, selection, style, tables
from lib.report.quality import pareto, quality_by_bits, quality_by_bytes

__all__ = ["memory_by_method", "pareto", "quality_by_bits", "quality_by_bytes", "speed_by_bytes"]


def speed_by_bytes(table: pd.DataFrame):
    """Prefill and decode speed against artifact bytes, as multiples of the original timed in the same run."""
    title = "Speed against artifact size"
    data = selection.having(table, "artifact_bytes", *tables.SPEEDS.values())
    data["x"] = data["artifact_bytes"] * 1e-6
    timed = [math.isfinite(tables.ratio(row, "decode")[0]) for row in data.to_dict("records")]
    data = data[timed]  # without the original in the same run there is nothing to compare with
    if data.empty:
        return ax.placeholder(title, selection.BENCHMARK)
    with style.use():
        figure = style.picture(9.6, 4.6)
        panels = figure.subplots(1, 2)
        drawn = [_speed(axes, data, metric) for axes, metric in zip(panels, tables.SPEEDS.values())]
        ax.headline(panels[0], title, f"{selection.title(table)}. Bars: 95 % intervals.\n{_original(data, 'prefill')}")
        ax.headline(panels[1], "", f"\n{_original(data, 'decode')}")
        ax.footnote(figure, selection.absent(table))
        for axes, (points, bars) in zip(panels, drawn):
            labels.place(axes, points, ax.names(data.index), [[(x, 1.0) for x in axes.get_xlim()], *bars])
    return figure


def _speed(axes, data: pd.DataFrame, metric: str) -> tuple[list, list]:
    """One panel: ratios with their intervals, the original as the line at 1; returns the points and the bars."""
    ratios = [tables.ratio(row, metric) for row in data.to_dict("records")]
    points, bars = [(x, ratio) for x, (ratio, _) in zip(data["x"], ratios)], []
    axes.axhline(1, color=style.INK, linestyle=":", linewidth=1)
    counts = data.get(f"{metric}_n", [None] * len(data))
    for (x, ratio), (_, error), n, method in zip(points, ratios, counts, data["method"]):
        below, above = ax.interval(ratio, error, n, log=False)
        look = style.look(method)
        bars.append([(x, ratio - below), (x, ratio + above)])
        axes.errorbar(
            x, ratio, yerr=[[below], [above]], fmt=look.marker, color=look.colour, capsize=2.5, elinewidth=1,
            markersize=11 if method == "none" else 6.5,
        )  # fmt: skip
    known = [ratio for _, ratio in points if math.isfinite(ratio)]
    axes.set(xlabel="artifact on disk, MB", ylabel=f"{metric} speed, original = 1")
    ax.span(axes, "x", data["x"], 0.16, ax.is_wide(data["x"], 2))
    ax.span(axes, "y", [*known, 1.0], 0.12, log=False)
    return points, bars


def _original(data: pd.DataFrame, metric: str) -> str:
    """What the 1 of a panel stands for: the original's speed over all runs that timed it."""
    speeds = data[data["method"].eq("none")][metric].tolist() + data.get(f"{metric}_original", data[metric]).tolist()
    speeds = sorted(speed for speed in speeds if math.isfinite(speed))
    between = f"{speeds[0]:,.0f}" if speeds[0] == speeds[-1] else f"{speeds[0]:,.0f} to {speeds[-1]:,.0f}"
    return f"{metric.capitalize()}: 1 is the original in the same run, {between} tokens/s"


def memory_by_method(table: pd.DataFrame):
    """Peak memory of each configuration beside the bytes of its artifact, as bars from zero."""
    title = "Peak memory and artifact size"
    data = selection.having(table, "peak_memory", "artifact_bytes")
    if data.empty:
        return ax.placeholder(title, selection.BENCHMARK)
    with style.use():
        figure = style.picture(7.6, 1.5 + 0.32 * len(data))
        axes = figure.add_subplot()
        for place, row in enumerate(data.to_dict("records")):
            colour = style.look(row["method"]).colour
            value, error = row["peak_memory"] * 1e-6, row["peak_memory_stderr"] * 1e-6
            bars = ax.interval(value, error, row["peak_memory_n"], log=False)
            axes.barh(
                place, row["peak_memory"] * 1e-6, 0.62, xerr=[[bars[0]], [bars[1]]], facecolor="white",
                edgecolor=colour, linewidth=1.3, ecolor=colour, capsize=2.5,
            )  # fmt: skip
            axes.barh(place, row["artifact_bytes"] * 1e-6, 0.62, color=colour)
        axes.set_yticks(range(len(data)), ax.names(data.index))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("MB")
        ax.headline(axes, title, f"{selection.title(table)}. Filled: artifact on disk; outline: peak memory in use.")
        ax.footnote(figure, selection.absent(table))
    return figure
