"""Quality against size: where each configuration stands, how sure that is, and which ones no other beats."""

import math

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import labels, selection, style

TITLES = {"perplexity": "Perplexity", "kl_divergence": "KL divergence", "top1_agreement": "Top-1 agreement"}
BEYOND = 8  # a perplexity above so many times the original's is drawn at the edge, with its number


def pareto(points) -> list[int]:
    """Indices of the points that no other point beats, ordered by the first coordinate.

    points: pairs (size, cost), lower is better for both. A point is beaten by one that is at most as large in both
    and smaller in one; equal points are kept together.
    """
    front, lowest, last = [], math.inf, None
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], points[i][1])):
        point = (points[index][0], points[index][1])
        if point[1] < lowest or point == last:
            front.append(index)
            lowest, last = point[1], point
    return front


def quality_by_bytes(table: pd.DataFrame, metric: str = "perplexity"):
    """Quality against the bytes of the saved artifact, with 95 % intervals and the Pareto front.

    metric: "perplexity", "kl_divergence" or "top1_agreement".
    """
    return _quality(table, metric, "artifact_bytes", 1e-6, "artifact on disk, MB", "artifact size")


def quality_by_bits(table: pd.DataFrame, metric: str = "perplexity"):
    """Quality against bits per weight of the whole artifact: embeddings, scales and metadata included."""
    return _quality(table, metric, "bits_per_weight", 1, "bits per weight, whole artifact", "bits per weight")


def _quality(table, metric: str, size: str, factor: float, xlabel: str, against: str):
    if metric not in TITLES:
        raise ValueError(f"metric={metric!r} is not a quality; choose one of {', '.join(TITLES)}.")
    title = f"{TITLES[metric]} against {against}"
    data = selection.having(table, metric, size)
    if metric == "kl_divergence":  # measured from the original, which has none by definition
        data = data[data["method"].ne("none")].copy()
    if data.empty:
        return ax.placeholder(title, selection.BENCHMARK)
    data["x"], data["y"] = data[size] * factor, data[metric]
    lower = data[f"{metric}_better"].ne(True).all()
    log = lower and ax.is_wide(_kept(data, metric), 2)
    data, edge = _clip(data, metric, log)
    with style.use():
        figure = style.picture(7.6, 4.9)
        axes = figure.add_subplot()
        front = pareto(list(zip(data["x"], data["y"] if lower else -data["y"])))
        _limits(axes, data, log, edge)
        lines = _front(axes, data.iloc[front]) + _methods(axes, data, metric, log, set(front)) + _reference(axes, data)
        axes.set(xlabel=xlabel, ylabel=f"{TITLES[metric]} ({'lower' if lower else 'higher'} is better)")
        ax.headline(axes, title, f"{selection.title(table)}. Bars: 95 % intervals. Filled: on the Pareto front.")
        ax.footnote(figure, selection.absent(table))
        labels.place(axes, list(zip(data["x"], data["shown"])), _texts(data), lines)
    return figure


def _kept(data: pd.DataFrame, metric: str) -> pd.Series:
    """The values that the axis shows as they are: finite, and no perplexity far above the original's."""
    kept = data["y"][np.isfinite(data["y"])]
    if metric != "perplexity" or kept.empty:
        return kept
    original = data["y"][data["method"].eq("none")]
    return kept[kept <= BEYOND * (original.iloc[0] if len(original) else kept.min())]


def _clip(data: pd.DataFrame, metric: str, log: bool) -> tuple[pd.DataFrame, float]:
    """Add `shown`, where a point is drawn, and `beyond`, whether that is the edge of the axis instead of its value.

    Returns the edge too: what is beyond it sits in a band of its own, with its number in its label.
    """
    kept = _kept(data, metric)
    beyond = ~data.index.isin(kept.index)
    low, high = (kept.min(), kept.max()) if len(kept) else (1.0, 1.0)
    step = (lambda part: high * (high / low) ** part) if log else (lambda part: high + part * (high - low or high))
    edge = step(0.08)
    return data.assign(beyond=beyond, shown=data["y"].where(~beyond, step(0.2))), edge


def _limits(axes, data: pd.DataFrame, log: bool, edge: float) -> None:
    """Limits with air for the labels, log axes where the values span much, and the band for what lies beyond."""
    ax.span(axes, "x", data["x"], 0.14, ax.is_wide(data["x"], 2))
    ax.span(axes, "y", data["shown"], 0.09, log)
    if data["beyond"].any():
        axes.axhspan(edge, axes.get_ylim()[1], color="#f1f2f4", zorder=0.9)
        axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick < edge])
        axes.annotate(
            "off the scale: read the number", (1, 1), (-4, -4), "axes fraction", "offset points",
            ha="right", va="top", fontsize=8, color=style.MUTED, style="italic",
        )  # fmt: skip


def _front(axes, front: pd.DataFrame) -> list:
    """The Pareto front as a pale staircase, which nothing measured is left of and below; returns it as a polyline."""
    x, y = front["x"].tolist(), front["shown"].tolist()
    corners = [corner for i in range(len(x)) for corner in ((x[i], y[max(i - 1, 0)]), (x[i], y[i]))]
    axes.plot(*zip(*corners), color=style.FRONT, linewidth=4, zorder=1, solid_capstyle="round")
    return [corners]


def _methods(axes, data: pd.DataFrame, metric: str, log: bool, front: set[int]) -> list:
    """One line per method in its own look, with intervals, filled on the front; returns all that as polylines."""
    drawn, filled = [], [position in front for position in range(len(data))]
    for method, part in data.assign(front=filled).groupby("method", sort=False):
        look = style.look(method)
        axes.plot(part["x"], part["shown"], look.line, color=look.colour, linewidth=1, alpha=0.8, zorder=2)
        drawn.append(part[["x", "shown"]].to_numpy(float))
        for point in part.to_dict("records"):
            error, n = point[f"{metric}_stderr"], point[f"{metric}_n"]
            below, above = (0, 0) if point["beyond"] else ax.interval(point["y"], error, n, log)
            bars = [[below], [above]] if above else None
            drawn.append([(point["x"], point["shown"] - below), (point["x"], point["shown"] + above)])
            axes.errorbar(
                point["x"], point["shown"], yerr=bars, fmt=look.marker, color=look.colour, capsize=2.5, elinewidth=1,
                markersize=11 if method == "none" else 6.5, markeredgewidth=1.3, zorder=4,
                markerfacecolor=look.colour if point["front"] else "white",
            )  # fmt: skip
    return drawn


def _reference(axes, data: pd.DataFrame) -> list:
    """A dotted line at the original's value; returns it as a polyline."""
    original = data[data["method"].eq("none")]
    if original.empty:
        return []
    look, value = style.look("none"), original["y"].iloc[0]
    axes.axhline(value, color=look.colour, linestyle=look.line, linewidth=1, zorder=1.5)
    return [[(x, value) for x in axes.get_xlim()]]


def _texts(data: pd.DataFrame) -> list[str]:
    """Labels with a true minus sign; a point at the edge also carries its number, which may be infinite."""
    names = ax.names(data.index)
    return [f"{n} ↑ {y:,.0f}" if b else n for n, y, b in zip(names, data["y"], data["beyond"])]
