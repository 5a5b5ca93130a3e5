"""Figures about codebooks: who wins at how many bits, and what the zero point and the norm of the error do."""

import numpy as np
import pandas as pd

from lib.report import axes as ax
from lib.report import selection, style

METHODS = {
    "symmetric": ("depth", "symmetric"),
    "rtn": ("rtn", "asymmetric"),
    "search": ("clip", "searched range"),
    "hqq": ("hqq", "HQQ"),
    "codebook": ("gptq", "normal quantiles"),
}
PANELS = {
    "weights_lost": "Weights",
    "outputs_lost": "Outputs",
    "uncalibrated_kl": "Model",
}
UNITS = ["squared error / squared weights", "lost share of output power", "KL divergence, nats a token"]
NORMS = {  # look and name; other norms are HQQ's
    "rtn": ("rtn", "minimum and maximum"),
    "refit": ("depth", "minimum and maximum, refit"),
    2.0: ("gptq", "p = 2, least squares"),
}
STEPS = np.linspace(0, 0.84, 43)
FAR = 0.51  # half a step, and what a scale in bfloat16 may add to it


def errors(table: pd.DataFrame):
    """Each method's error of weights and of outputs, and the model's divergence, by bits: who wins depends on which.

    Labels read: method (a name in `METHODS`), bits. Metrics: those in `PANELS`.
    """
    parts = {metric: selection.newest(table, metric) for metric in PANELS}
    if any(part.empty for part in parts.values()):
        return ax.placeholder("Who wins, and by what", "26_codebooks")
    bits = sorted(parts["weights_lost"]["bits"].astype(int).unique(), reverse=True)
    with style.use():
        figure = style.picture(9.6, 4.0)
        panels = figure.subplots(1, len(PANELS))
        for axes, (metric, title), unit in zip(panels, PANELS.items(), UNITS):
            for index, method in enumerate(METHODS):
                part = parts[metric][parts[metric]["method"].eq(method)]
                _points(axes, part, bits, method, 0.12 * (index - (len(METHODS) - 1) / 2))
            axes.set_xticks(range(len(bits)), labels=[f"{b} bits" for b in bits])
            ax.plain_log(axes, "y")
            axes.grid(False, axis="x")
            ax.headline(axes, title, unit)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _points(axes, part: pd.DataFrame, bits: list[int], method: str, shift: float) -> None:
    look, text = style.look(METHODS[method][0]), METHODS[method][1]
    places = [bits.index(int(b)) + shift for b in part["bits"]]
    ax.line(axes, places, part, look, text, log=True, linestyle="none", markersize=5)


def zero_points(table: pd.DataFrame):
    """What a real-valued zero point saves over an integer one, by bits, columns in order and shuffled.

    Metric zero_point_saving, labels bits and columns ("in order" or "shuffled").
    """
    data = selection.newest(table, "zero_point_saving")
    if data.empty:
        return ax.placeholder("A real-valued zero point", "26_codebooks")
    bits = sorted(data["bits"].astype(int).unique(), reverse=True)
    looks = {"in order": style.look("depth"), "shuffled": style.look("gptq")}
    with style.use():
        figure = style.picture(7.6, 3.4)
        axes = figure.subplots()
        for shift, (order, look) in zip((-0.19, 0.19), looks.items()):
            part = data[data["columns"].eq(order)]
            places = np.array([bits.index(int(b)) for b in part["bits"]]) + shift
            bars = ax.half_widths(part, 100)
            found = axes.bar(
                places, 100 * part["value"].astype(float), 0.36, yerr=bars, capsize=3, ecolor=style.INK,
                color=look.colour, label=order,
            )  # fmt: skip
            axes.bar_label(found, fmt="%.0f %%", padding=2, fontsize=8.5)
        axes.set_xticks(range(len(bits)), labels=[f"{b} bits" for b in bits])
        axes.set_ylabel("saved squared error, %")
        axes.margins(y=0.14)
        axes.grid(False, axis="x")
        axes.legend(title="columns", alignment="left")
        note = "Shuffled columns can't fall back on a grid that the model had before. Bars: 95 % intervals over layers."
        ax.headline(axes, "What a real-valued zero point saves over the rounded one", note)
    return figure


def norms(errors: dict[tuple[str, str | float], np.ndarray]):
    """How far weights are off under each norm p that the zero point minimizes, with real-valued and integer zeros.

    errors: |error| of each weight, in steps of the grid between minimum and maximum, by (zeros, norm): "real-valued" or
    "integer", and p or a name in `NORMS`.
    """
    titles = {"real-valued": "The zero point that each p asks for", "integer": "Rounded to an integer, scales refit"}
    with style.use():
        figure = style.picture(9.6, 3.9)
        for axes, (zeros, title) in zip(figure.subplots(1, 2), titles.items()):
            shown = {norm: each for (kind, norm), each in errors.items() if kind == zeros}
            for norm, each in shown.items():
                look, text = NORMS.get(norm, ("hqq", f"p = {norm} (HQQ)"))
                colour, line = style.look(look).colour, style.look(look).line
                axes.hist(each, STEPS, histtype="step", density=True, color=colour, linestyle=line, label=text)
            axes.set(xlabel="error, in steps of the grid", ylabel="density of the weights", xlim=(0, STEPS[-1]))
            axes.margins(y=0.25)
            axes.legend(loc="upper right", fontsize=8.5)
            far = [float(np.mean(each > FAR)) for each in shown.values()]
            shares = f"{100 * min(far):.1f} to {100 * max(far):.1f} %" if max(far) >= 5e-4 else "none"
            ax.headline(axes, title, f"Off by more than half a step: {shares} of the weights.")
    return figure
