"""Figures about rotations: what they do to weights and inputs, and what the output error is made of."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

STAGES = {"before": "none", "after": "gptq"}  # the look that stands for each
FACTORS = {
    "rounding": "error of the weights",
    "gain": "noise in the outputs\nper noise on the weights",
    "exposure": "share of it that\ncompensation leaves",
    "output_error": "error of the outputs\n(their product)",
}


def distributions(table: pd.DataFrame):
    """Histograms of `value` by `what` (a panel each) and `stage`, before and after; one row a number.

    Numbers are shown in units of their root mean square, beside a normal distribution.
    """
    with style.use():
        figure = style.picture(9.6, 3.5)
        kinds = list(dict.fromkeys(table["what"]))
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, what in zip(panels, kinds):
            part = table[table["what"].eq(what)]
            scaled = {stage: _in_units(part.loc[part["stage"].eq(stage), "value"]) for stage in STAGES}
            far = max(np.abs(values).max() for values in scaled.values())
            edges = np.linspace(-far, far, 121)
            for stage, values in scaled.items():
                colour, text = style.look(STAGES[stage]).colour, f"{stage}: largest {np.abs(values).max():.0f}"
                axes.hist(values, edges, density=True, histtype="step", color=colour, linewidth=1.4, label=text)
            _normal(axes, edges, min(len(values) for values in scaled.values()))
            axes.set(yscale="log", xlabel=f"{what}, in units of their root mean square", ylabel="density")
            axes.legend(loc="upper left", fontsize=8.5)
            axes.set_xlim(-1.04 * far, 1.04 * far)
            ax.headline(axes, f"The {what}", "Logarithmic density. Dotted: normal distribution.")
    return figure


def factors(table: pd.DataFrame):
    """After over before, for each factor of the output error (`analysis.incoherence.factors`): a dot a layer.

    Rows need the metrics of that function and the labels layer and stage; the bar is the 95 % interval of the mean.
    """
    title = "What a rotation does to the error"
    parts = {name: _ratios(selection.newest(table, name)) for name in FACTORS}
    if any(part.empty for part in parts.values()):
        return ax.placeholder(title, "25_rotation")
    with style.use():
        figure = style.picture(8.2, 3.6)
        axes = figure.subplots()
        axes.axvline(1, color=style.INK, linewidth=0.9)
        for place, (name, ratio) in enumerate(parts.items()):
            logs = np.log(ratio.to_numpy())
            wide = ax.half_width(len(logs)) * logs.std(ddof=1) / len(logs) ** 0.5 if len(logs) > 1 else 0
            mean, (low, high) = np.exp(logs.mean()), np.exp([logs.mean() - wide, logs.mean() + wide])
            look = style.look("depth" if name == "output_error" else "gptq")
            spread = place + 0.26 + 0.1 * np.linspace(-1, 1, len(ratio))
            axes.plot(ratio, spread, ".", color=look.colour, alpha=0.35, markersize=6)
            reach = [[mean - low], [high - mean]]
            axes.errorbar(mean, place, xerr=reach, fmt="o", color=look.colour, capsize=3, zorder=4)
            axes.annotate(f"×{mean:.2f}", (mean, place), (0, 6), textcoords="offset points", ha="center", fontsize=9)
        axes.set_yticks(range(len(parts)), labels=FACTORS.values())
        axes.set(ylim=(len(parts) - 0.45, -0.6), xlabel="after the rotation / before it")
        everything = np.concatenate([part.to_numpy() for part in parts.values()])
        ax.span(axes, "x", everything, 0.08, True)
        count = len(parts["output_error"])
        ax.headline(axes, title, f"Small dots: {count} layers. Large: their geometric mean with its 95 % interval.")
    return figure


def _in_units(values: pd.Series) -> np.ndarray:
    values = values.to_numpy(float)
    return values / np.sqrt(np.square(values).mean())


def _normal(axes, edges: np.ndarray, count: int) -> None:
    """The normal density, where `count` numbers would still fill a bar of the histogram."""
    density = np.exp(-np.square(edges) / 2) / np.sqrt(2 * np.pi)
    seen = density > 1 / (count * (edges[1] - edges[0]))
    axes.plot(edges[seen], density[seen], ":", color=style.look("rtn").colour, linewidth=1.6)


def _ratios(data: pd.DataFrame) -> pd.Series:
    """after / before of each layer."""
    if data.empty or "stage" not in data:
        return pd.Series(dtype=float)
    pivot = data.pivot_table(index="layer", columns="stage", values="value").reindex(columns=list(STAGES)).dropna()
    return pivot["after"] / pivot["before"]
