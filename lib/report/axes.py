"""What every figure needs from its axes: honest intervals, plain log ticks, and placeholders for what is missing."""

import math
import textwrap

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lib.metrics.intervals import quantile
from lib.report import selection, style

# decades that a log axis spans at most -> where in each decade its ticks sit
TICKS = {0.7: [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9], 1.3: [1, 1.5, 2, 3, 5, 7], 2: [1, 2, 5], 4: [1, 3]}


def half_width(n) -> float:
    """Half-width of a 95 % interval in standard errors: Student's, for a mean over `n` samples (NaN: very many)."""
    n = math.inf if n is None or n != n else float(n)
    return quantile(n - 1)


def interval(value: float, stderr: float, n, log: bool) -> tuple[float, float]:
    """Distances from `value` down and up to the ends of its 95 % interval; (0, 0) where the error is unknown.

    n: the number of samples behind the error. On a log axis the interval is symmetric in the logarithm (delta
    method), so its lower end stays positive.
    """
    if not (math.isfinite(stderr) and math.isfinite(value)) or stderr <= 0:
        return 0.0, 0.0
    half = half_width(n) * stderr
    if not log:
        return half, half
    factor = math.exp(min(half / value, 300.0))
    return value - value / factor, value * factor - value


def intervals(data, log: bool, factor: float = 1.0) -> np.ndarray:
    """[2, rows]: the `interval` of each row of `data` (columns value, stderr and n), times `factor`."""
    parts = zip(factor * data["value"].astype(float), factor * data["stderr"].astype(float), data["n"])
    return np.array([interval(value, error, n, log) for value, error, n in parts]).reshape(-1, 2).T


def line(axes, x, part, look, label: str | None = None, *, log: bool = False, factor: float = 1.0, **changed) -> None:
    """Draw `factor` times the values of `part` (columns value, stderr and n) over `x` with their 95 % intervals.

    look: a `style.Look`; changed: arguments of `errorbar` that differ from it.
    """
    drawn = {"fmt": look.marker, "linestyle": look.line, "color": look.colour, "label": label}
    axes.errorbar(
        x, factor * part["value"].astype(float), yerr=intervals(part, log=log, factor=factor), **drawn | changed
    )


def is_wide(values, ratio: float = 3.0) -> bool:
    """Whether positive values span so much that a log axis reads better."""
    values = np.asarray([v for v in values if math.isfinite(v)])
    return bool(len(values) and values.min() > 0 and values.max() > ratio * values.min())


def plain_log(axes, which: str) -> None:
    """Make axis "x" or "y" logarithmic with ticks at round numbers written in full (30, 50, 100), never as powers."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)  # few ticks over many decades, many over a part of one
    steps = next((steps for most, steps in TICKS.items() if decades < most), [1])
    axis.set_major_locator(LogLocator(subs=steps, numticks=50))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def span(axes, which: str, values, air: float, log: bool) -> None:
    """Limits of axis "x" or "y" that leave `air`, a share of the range of `values`, on both sides; log if wanted."""
    low, high = min(values), max(values)
    room = air * (high - low) or 0.1 * abs(high) or 1.0
    limits = (low * (low / high) ** air, high * (high / low) ** air) if log else (low - room, high + room)
    getattr(axes, f"set_{which}lim")(limits)
    if log:
        plain_log(axes, which)


def headline(axes, title: str, subtitle: str = "") -> None:
    """A bold title on the left with a quiet second line that says what was measured and how to read it."""
    lines = subtitle.count("\n") + 1 if subtitle else 0
    axes.set_title(title, pad=7 + 11.5 * lines)
    axes.annotate(
        subtitle, (0, 1), (0, 5), "axes fraction", "offset points",
        fontsize=8.2, color=style.MUTED, va="bottom", linespacing=1.25,
    )  # fmt: skip


def placeholder(title: str, what: str):
    """A figure that shows that there is nothing to show, and what to do about it."""
    with style.use():
        figure = style.picture(7.6, 2.6)
        axes = figure.add_subplot()
        headline(axes, title)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, linestyle=(0, (4, 4)))
        axes.text(
            0.5, 0.5, absence(what).replace(": run", ":\nrun"),  # in one line it is wider than its frame
            transform=axes.transAxes, ha="center", va="center", color=style.MUTED, fontsize=11,
        )  # fmt: skip
    return figure


def absence(what: str) -> str:
    """The sentence that stands where no notebook called `what` has a finished run, with what to do about it."""
    return f"no finished run of {what} yet: run `{_command(what)}`"


def _command(what: str) -> str:
    """The command that runs the notebooks called `what`: the report's, or the batch of the others at their defaults."""
    names = {run.notebook.stem for run in selection.reported()}
    reported = not names or any(name in what for name in names)
    return "make report" if reported else "python -m lib.sweep notebooks/batches/methods.yaml"


def footnote(figure, lines: list[str]) -> None:
    """Quiet lines under the whole figure, wrapped to its width: what is missing, what was cut."""
    width = int(figure.get_figwidth() * 17)
    wrapped = "\n".join(part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="   "))
    if wrapped:
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8, color=style.MUTED, linespacing=1.3)


def names(labels) -> list[str]:
    """Labels with a true minus sign, as a figure writes them."""
    return [label.replace(" -", " −") for label in labels]
