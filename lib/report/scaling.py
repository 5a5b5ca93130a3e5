"""Figures about scales and clips: why enlarging columns works, what clipping gives up, and what each brings."""

import pandas as pd
from matplotlib.colors import TwoSlopeNorm

from lib.report import axes as ax
from lib.report import selection, style

NOTEBOOK = "23_scales_and_clips"
KINDS = {"q_proj": "none", "o_proj": "rtn", "gate_proj": "gptq", "down_proj": "depth"}  # the look of a kind of layer


def alpha(table: pd.DataFrame):
    """Output error against the exponent α, relative to no scale (metric `scaled_error`), by kind of layer.

    Labels read: layer (its last word is the kind), alpha.
    """
    data = selection.newest(table, "scaled_error")
    if data.empty or "alpha" not in data:
        return ax.placeholder("How much to scale", NOTEBOOK)
    data = data.assign(kind=data["layer"].astype(str).str.rpartition(".")[2], alpha=pd.to_numeric(data["alpha"]))
    with style.use():
        figure = style.picture(7.6, 3.9)
        axes = figure.subplots()
        for kind, part in data.groupby("kind", sort=False):
            look = style.look(KINDS.get(kind, kind))
            for _, line in part.groupby("layer", sort=False):
                line = line.sort_values("alpha")
                axes.plot(line["alpha"], line["value"], color=look.colour, linewidth=0.6, alpha=0.3)
            middle = part.groupby("alpha")["value"].median()
            axes.plot(middle.index, middle, look.line, color=look.colour, linewidth=2.2, label=_reading(kind))
            best = middle.idxmin()
            axes.plot(best, middle[best], look.marker, color=look.colour, markersize=8, zorder=4)
        axes.axhline(1, color=style.INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel="α: columns are scaled by (size of inputs) to the power of α", ylabel="error / error at α = 0")
        ax.span(axes, "y", data["value"].clip(0.02, 4), 0.05, log=True)
        axes.legend(ncols=2)
        ax.headline(axes, "How much to scale", "Bold: median over blocks, its minimum marked. Thin: each block.")
    return figure


def _reading(kind: str) -> str:
    shared = {"q_proj": "q, k and v", "gate_proj": "gate and up"}
    return f"inputs of {shared.get(kind, kind.removesuffix('_proj'))}"


def clipping(weights: pd.DataFrame, surface: pd.DataFrame):
    """One group: its weights with both ends of the range, the say of each weight, and the error over both ends.

    weights: one row a weight, with `weight` and `share` of the group's Hessian diagonal. surface: one row a pair of
    ends, with `low` and `high` (shares of minimum and maximum) and `error` relative to the whole range.
    """
    table = surface.pivot(index="high", columns="low", values="error").sort_index()
    b, a = table.stack().idxmin()
    ends = weights["weight"].min(), weights["weight"].max()
    with style.use():
        figure = style.picture(10.2, 4.2)
        layout = figure.add_gridspec(2, 2, width_ratios=[1.25, 1])
        top, below = figure.add_subplot(layout[0, 0]), figure.add_subplot(layout[1, 0])
        _histogram(top, weights["weight"], ends, (a * ends[0], b * ends[1]))
        _shares(below, weights, (a * ends[0], b * ends[1]), top.get_xlim())
        _surface(figure, figure.add_subplot(layout[:, 1]), table, (a, b))
    return figure


def _histogram(axes, weight: pd.Series, whole, clipped) -> None:
    axes.hist(weight, 28, color=style.FRONT)
    for name, method, both in (("minimum and maximum", "none", whole), ("clipped", "gptq", clipped)):
        look = style.look(method)
        for index, end in enumerate(both):
            axes.axvline(end, color=look.colour, linestyle=look.line, linewidth=1.6, label=name if index == 0 else None)
    axes.set(ylabel="weights")
    axes.tick_params(labelbottom=False)
    axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper center", ncols=2)
    ax.headline(
        axes, "What is given up", "Above: the weights of a group. Below: the power of the input that each meets."
    )


def _shares(axes, weights: pd.DataFrame, clipped, limits) -> None:
    inside = weights["weight"].between(*clipped)
    for part, method, text in ((weights[inside], "none", "inside"), (weights[~inside], "depth", "clipped")):
        colour = style.look(method).colour if method == "depth" else style.MUTED
        axes.vlines(part["weight"], 0, part["share"], color=colour, linewidth=1.6, label=f"{len(part)} {text}")
    axes.set(xlabel="weight", ylabel="say of the weight", xlim=limits)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylim(0, 1.3 * weights["share"].max())
    axes.legend(loc="upper center", ncols=2)


def _surface(figure, axes, table: pd.DataFrame, best) -> None:
    values = table.to_numpy()
    scale = TwoSlopeNorm(1, min(values.min(), 0.99), max(1.01, min(values.max(), 2.0)))
    picture = axes.pcolormesh(table.columns, table.index, values, cmap="PuOr_r", norm=scale, shading="nearest")
    look = style.look("gptq")
    axes.plot(*best, look.marker, color=look.colour, markeredgecolor="white", markersize=10, label="least error")
    axes.plot(1, 1, "*", color=style.INK, markeredgecolor="white", markersize=12, label="whole range")
    axes.set(xlabel="lower end / minimum", ylabel="upper end / maximum", aspect="equal")
    axes.grid(False)
    axes.legend(loc="lower left", frameon=True, framealpha=0.85)
    figure.colorbar(picture, ax=axes, shrink=0.85, label="error / error of the whole range", extend="max")
    ax.headline(axes, "Error over both ends", f"Relative to the whole range; the least is {values.min():.2f}.")


def recipes(table: pd.DataFrame):
    """KL divergence after each recipe (label `recipe`, in the order recorded), a panel per bit width (label `bits`)."""
    title = "Scales and clips, at the same bytes"
    data = selection.newest(table, "kl_divergence")
    if "recipe" not in data or data["recipe"].isna().all():
        return ax.placeholder(title, NOTEBOOK)
    data = data.dropna(subset=["recipe"]).astype({"bits": int, "value": float, "stderr": float})
    widths, names = sorted(data["bits"].unique(), reverse=True), list(dict.fromkeys(data["recipe"]))
    with style.use():
        figure = style.picture(9.6, 1.3 + 0.42 * len(names))
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
        for axes, bits in zip(panels, widths):
            _recipes(axes, data[data["bits"].eq(bits)], names)
            ax.headline(axes, title if bits == widths[0] else "", f"{bits} bits. Bars: 95 % intervals.")
        ax.lines_of(panels[0], names)
    return figure


def _recipes(axes, part: pd.DataFrame, names: list[str]) -> None:
    log = ax.is_wide(part["value"])
    for row in part.to_dict("records"):
        place, look = names.index(row["recipe"]), style.look("gptq" if "GPTQ" in row["recipe"] else "rtn")
        ax.dot(axes, row, place, look, "{:.3f}", log=log)
    axes.set(xlabel="KL divergence, nats a token")
    axes.margins(x=0.12)
    if log:
        ax.plain_log(axes, "x")
