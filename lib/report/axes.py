"""What every figure needs from its axes: honest intervals, plain log ticks, labels that do not overlap, gaps shown."""

import itertools
import math

import numpy as np

from lib.metrics.intervals import quantile
from lib.report import rows, style

# decades that a log axis spans at most -> where in each decade its ticks sit
TICKS = {0.7: [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9], 1.3: [1, 1.5, 2, 3, 5, 7], 2: [1, 2, 5], 4: [1, 3]}


def reach(n) -> float:
    """Half-width of a 95 % interval in standard errors: Student's, for a mean over `n` samples (NaN: very many)."""
    n = math.inf if n is None or n != n else float(n)
    return quantile(n - 1)


def reaches(data, factor: float = 1.0) -> np.ndarray:
    """Half-widths of the 95 % intervals of the rows of `data` (columns stderr and n), times `factor`."""
    errors = data["stderr"].astype(float).fillna(0)
    return np.array([factor * reach(n) * error for n, error in zip(data["n"], errors)])


def interval(value: float, stderr: float, n, log: bool) -> tuple[float, float]:
    """Distances from `value` down and up to the ends of its 95 % interval; (0, 0) where the error is unknown.

    n: the number of samples behind the error. On a log axis the interval is symmetric in the logarithm (delta
    method), so its lower end stays positive.
    """
    if not (math.isfinite(stderr) and math.isfinite(value)) or stderr <= 0:
        return 0.0, 0.0
    half = reach(n) * stderr
    if not log:
        return half, half
    factor = math.exp(min(half / value, 300.0))
    return value - value / factor, value * factor - value


def intervals(data, log: bool, factor: float = 1.0) -> np.ndarray:
    """[2, rows]: the `interval` of each row of `data` (columns value, stderr and n), times `factor`."""
    parts = zip(factor * data["value"].astype(float), factor * data["stderr"].astype(float), data["n"])
    return np.array([interval(value, error, n, log) for value, error, n in parts]).reshape(-1, 2).T


def is_wide(values, ratio: float = 3.0) -> bool:
    """Whether positive values span so much that a log axis reads better."""
    values = np.asarray([v for v in values if math.isfinite(v)])
    return bool(len(values) and values.min() > 0 and values.max() > ratio * values.min())


def plain_log(axes, which: str) -> None:
    """Make axis "x" or "y" logarithmic with ticks at round numbers written in full (30, 50, 100), never as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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


def gap(title: str, what: str):
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
    names = {run.notebook.stem for run in rows.reported()}
    reported = not names or any(name in what for name in names)
    return "make report" if reported else "python -m lib.sweep notebooks/batches/methods.yaml"


def footnote(figure, lines: list[str]) -> None:
    """Quiet lines under the whole figure, wrapped to its width: what is missing, what was cut."""
    import textwrap

    width = int(figure.get_figwidth() * 17)
    wrapped = "\n".join(part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="   "))
    if wrapped:
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8, color=style.MUTED, linespacing=1.3)


def names(labels) -> list[str]:
    """Labels with a true minus sign, as a figure writes them."""
    return [label.replace(" -", " −") for label in labels]


def place(axes, points: list[tuple[float, float]], texts: list[str], lines=()) -> list:
    """Write each text beside its point so that texts cover neither each other nor points, and few of the `lines`.

    points: data coordinates; lines: drawn polylines, each a list of data coordinates. Tries positions around each
    point, from near to far, and keeps the one that covers least; a text that ends far from its point gets a thin
    line to it. Points drawn on one another share a text ("RTN, GPTQ 8 bits"). Returns the annotations.
    Settles the layout, so call it last.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.figure
    style.settle(figure)
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    dots = axes.transData.transform(points)
    inside, drawn = axes.get_window_extent(renderer), _along(axes, lines, 3 * scale)
    taken = {index: _box(*dot, 5 * scale) for index, dot in enumerate(dots)}
    crowd = [sum(np.hypot(*(dots - dot).T) < 60 * scale) for dot in dots]
    placed, halo = [], withStroke(linewidth=2, foreground="white", alpha=0.85)
    # the crowded points choose first, the free ones can go anywhere
    for index, text in sorted(_shared(dots, texts, 4 * scale).items(), key=lambda item: -crowd[item[0]]):
        note = axes.annotate(text, points[index], (0, 0), textcoords="offset points", fontsize=8.6, zorder=6)
        note.set(in_layout=False, path_effects=[halo])
        extent = note.get_window_extent(renderer)
        size, others = (extent.width, extent.height), [box for other, box in taken.items() if other != index]
        best = min(_positions(), key=lambda p: _cost(p, dots[index], size, scale, others, drawn, inside))
        _move(axes, note, points[index], best)
        taken[f"text {index}"] = _corners(best, dots[index], size, scale)
        placed.append(note)
    return placed


def _shared(dots, texts: list[str], near: float) -> dict[int, str]:
    """Index -> text, where dots within `near` pixels whose texts differ in the first word alone are told once."""
    told = {}
    for index, text in enumerate(texts):
        word, _, tail = text.partition(" ")
        for other in told:
            if np.hypot(*(dots[index] - dots[other])) < near and tail and texts[other].partition(" ")[2] == tail:
                told[other] = f"{told[other].removesuffix(tail).rstrip()}, {word} {tail}"
                break
        else:
            told[index] = text
    return told


def _along(axes, lines, step: float) -> np.ndarray:
    """Pixels [count, 2] every `step` along polylines given in data coordinates."""
    pieces = [np.empty((0, 2))]
    for line in lines:
        corners = axes.transData.transform(line)
        for start, end in itertools.pairwise(corners):
            count = int(np.hypot(*(end - start)) / step) + 1
            pieces.append(start + (end - start) * np.linspace(0, 1, count)[:, None])
    return np.concatenate(pieces)


def _move(axes, note, point, position) -> None:
    """Put a text at its position, with a thin line to its point when that is far."""
    distance, x, y = position
    offset = distance * x, distance * y
    note.set(ha=("right", "center", "left")[1 + int(np.sign(x))], va=("top", "center", "bottom")[1 + int(np.sign(y))])
    note.set_position(offset)
    if distance > 11:
        arrow = {"arrowstyle": "-", "color": "#9aa3ad", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        line = axes.annotate("", point, offset, textcoords="offset points", zorder=2, arrowprops=arrow)
        line.set_in_layout(False)


def _positions():
    """(distance in points, x and y direction): right first, as one reads, then around, ever farther."""
    around = [(1, 0), (0.9, 0.7), (0.9, -0.7), (0, 1), (0, -1), (-1, 0), (-0.9, 0.7), (-0.9, -0.7)]
    return [(distance, x, y) for distance in (7, 10, 17, 25, 34, 44, 56) for x, y in around]


def _box(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half


def _corners(position, dot, size, scale) -> tuple[float, float, float, float]:
    """The pixels (left, bottom, right, top) that a text of this size covers at this position."""
    distance, x, y = position
    left = dot[0] + distance * scale * x + size[0] * (np.sign(x) - 1) / 2
    bottom = dot[1] + distance * scale * y + size[1] * (np.sign(y) - 1) / 2
    return left, bottom, left + size[0], bottom + size[1]


def _cost(position, dot, size, scale, taken, drawn, inside) -> float:
    """How bad a position is: area covered, distance outside, lines crossed, and a little for being far."""
    left, bottom, right, top = _corners(position, dot, size, scale)
    covered = sum(
        max(0, min(right, box[2]) - max(left, box[0])) * max(0, min(top, box[3]) - max(bottom, box[1])) for box in taken
    )
    outside = max(0, inside.x0 - left, right - inside.x1) + max(0, inside.y0 - bottom, top - inside.y1)
    x, y = drawn.T
    crossed = int(((x > left - 2) & (x < right + 2) & (y > bottom + 1) & (y < top - 1)).sum())
    return 20 * covered / scale**2 + 200 * outside / scale + 6 * crossed + 2 * position[0]
