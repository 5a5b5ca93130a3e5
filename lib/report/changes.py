"""Figures that show one model before and after: what compressing it changed, and what removing blocks did."""

import pandas as pd

from lib.report import axes as ax
from lib.report import style

PANELS = {
    "artifact_bytes": ("Size", "MB", 1e-6),
    "perplexity": ("Perplexity", "lower is better", 1),
    "top1_agreement": ("Same next token", "share, higher is better", 1),
}


def what_changed(table: pd.DataFrame):
    """Original beside compressed (label `arm`), one panel a metric of `PANELS` that the table has; 95 % intervals."""
    data = table[table["metric"].isin(PANELS)] if "arm" in table else table.iloc[:0]
    if data.empty:
        return ax.placeholder("What changed", "00_start_here")
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
        down, up = ax.interval(value, error, part.at[arm, "n"], False)
        if up:
            axes.errorbar(place, value, yerr=[[down], [up]], color=style.MUTED, capsize=4)
        axes.annotate(f"{value:.3g}", (place, value + up), (0, 4), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(arms)), labels=[arm for arm, _ in arms])
    axes.margins(x=0.2, y=0.18)
    axes.grid(axis="x", visible=False)
    ax.headline(axes, title, unit)
