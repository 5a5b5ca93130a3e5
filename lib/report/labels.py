"""Labels beside points: they cover neither each other nor points, and few lines.

adjustText (1.4.0) was tried instead: with forces that keep labels near, it writes two over each other where points
coincide, and over points at the right edge, on the figures of the report's own benchmark.
"""

import itertools

import numpy as np
from matplotlib.patheffects import withStroke

from lib.report import style


def place(axes, points: list[tuple[float, float]], texts: list[str], lines=()) -> list:
    """Write each text beside its point so that texts cover neither each other nor points, and few of the `lines`.

    points: data coordinates; lines: drawn polylines, each a list of data coordinates. Tries positions around each
    point, from near to far, and keeps the one that covers least; a text that ends far from its point gets a thin
    line to it. Points drawn on one another share a text ("RTN, GPTQ 8 bits"). Returns the annotations.
    Settles the layout, so call it last.
    """
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
