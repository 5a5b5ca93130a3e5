"""Figures of comparisons show every row, its interval, and what was seen."""

import pandas as pd
import pytest

from lib.report import compare, style


def texts(figure):
    """All that is written in a figure."""
    return " ".join(
        text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title, *axes.get_yticklabels()]
    )


def recorded(metric="difference"):
    rows = []
    for task in ("facts", "stories"):
        for arm, value in (("rtn 4", -0.01), ("rtn 3", -0.12)):
            given = dict(metric=metric, task=task, arm=arm, value=value, low=value - 0.04, high=value + 0.04)
            rows.append(given | dict(seen=value < -0.1, gained=3, lost=15, n=200))
    return pd.DataFrame(rows)


def test_the_forest_says_what_was_seen():
    figure = compare.forest(recorded())
    written = texts(figure)
    assert written.count("no difference seen") == 2 and written.count("a difference") == 2
    assert "−12.0  (+3 −15)" in written and "stories: rtn 3" in written
    points = [each.lines[0].get_xdata()[0] for each in figure.axes[0].containers]
    assert points == pytest.approx([-1, -12, -1, -12])
    assert "rtn 4" in texts(compare.forest(recorded()[:2])) and "facts:" not in texts(compare.forest(recorded()[:2]))


def test_nothing_recorded_is_a_gap():
    assert "52_compare" in texts(compare.forest(pd.DataFrame()))


def test_figures_have_the_same_bytes_twice():
    assert style.png(compare.forest(recorded())) == style.png(compare.forest(recorded()))
