"""Figures that show one model before and after: what compressing it changed, and what removing blocks did."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import rows, style
from lib.report.layers import SCORES

PANELS = {
    "artifact_bytes": ("Size", "MB", 1e-6),
    "perplexity": ("Perplexity", "lower is better", 1),
    "top1_agreement": ("Same next token", "share, higher is better", 1),
}
DEPTH = {"perplexity": "perplexity", "kl_divergence": "KL divergence, nats a token"}


def what_changed(table: pd.DataFrame):
    """Original beside compressed (label `arm`), one panel a metric of `PANELS` that the table has; 95 % intervals."""
    data = table[table["metric"].isin(PANELS)] if "arm" in table else table.iloc[:0]
    if data.empty:
        return ax.gap("What changed", "00_start_here")
    metrics = [metric for metric in PANELS if metric in set(data["metric"])]
    with style.use():
        figure = style.picture(9.6, 2.9)
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
            _before_after(axes, data[data["metric"].eq(metric)].set_index("arm"), *PANELS[metric])
    return figure


def _before_after(axes, part: pd.DataFrame, title: str, unit: str, factor: float) -> None:
    arms = [(arm, look) for arm, look in (("original", "none"), ("compressed", "gptq")) if arm in part.index]
    for place, (arm, look) in enumerate(arms):
        value, error = part.at[arm, "value"] * factor, part.at[arm, "stderr"] * factor
        axes.bar(place, value, width=0.6, color=style.look(look).colour)
        down, up = ax.interval(value, error, False)
        if up:
            axes.errorbar(place, value, yerr=[[down], [up]], color=style.MUTED, capsize=4)
        axes.annotate(f"{value:.3g}", (place, value + up), (0, 4), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(arms)), labels=[arm for arm, _ in arms])
    axes.margins(x=0.2, y=0.18)
    axes.grid(axis="x", visible=False)
    ax.headline(axes, title, unit)


def quality_by_depth(table: pd.DataFrame):
    """Perplexity and KL divergence against the number of blocks removed, one line a score; 95 % intervals.

    Reads perplexity and kl_divergence with the labels score and blocks, as `30_depth_pruning` records them.
    """
    parts = {metric: rows.newest(table[table["notebook"].eq("30_depth_pruning")], metric) for metric in DEPTH}
    parts = {metric: part.dropna(subset=["value"]) for metric, part in parts.items() if len(part)}
    if not parts:
        return ax.gap("Quality against depth", "30_depth_pruning")
    with style.use():
        figure = style.picture(9.6, 3.7)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for axes, (metric, part) in zip(panels, parts.items()):
            for score, look in zip(SCORES, ("gptq", "depth")):
                _by_depth(axes, part[part["score"].eq(score)].sort_values("blocks"), score, style.look(look))
            axes.set(xlabel="blocks removed", ylabel=DEPTH[metric])
            axes.xaxis.get_major_locator().set_params(integer=True)
            if ax.is_wide(part["value"]):
                ax.plain_log(axes, "y")
            axes.legend()
        ax.headline(panels[0], "What each score's choice of blocks costs", "One shot, nothing healed. 95 % intervals.")
    return figure


def _by_depth(axes, line: pd.DataFrame, score: str, look) -> None:
    line = line[line["value"].gt(0)]  # the original's divergence from itself has no place on a log axis
    bars = np.array([ax.interval(v, e, True) for v, e in zip(line["value"], line["stderr"].astype(float))])
    axes.errorbar(
        line["blocks"], line["value"], yerr=bars.reshape(-1, 2).T, fmt=look.marker, linestyle=look.line,
        color=look.colour, capsize=2, label=SCORES[score],
    )  # fmt: skip
