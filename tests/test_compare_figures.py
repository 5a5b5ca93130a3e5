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


def test_retention_stands_between_chance_and_the_original():
    kept = recorded("retention").assign(value=[0.9, 0.4, 1.02, -0.1])
    written = texts(compare.retention(kept.assign(low=kept["value"] - 0.1, high=kept["value"] + 0.1)))
    assert all(part in written for part in ("90 %", "40 %", "102 %", "-10 %", "chance", "original"))


def test_margins_count_what_flipped():
    table = pd.DataFrame(
        {"arm": ["a"] * 4 + ["b"] * 4, "before": [1, 2, -1, 0.1] * 2, "after": [1, 2, -2, -0.2] + [3] * 4}
    )
    figure = compare.margins(table)
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert legends[0] == ["unchanged: 3", "right before, wrong now: 1", "wrong before, right now: 0"]
    assert legends[1][2] == "wrong before, right now: 1"


@pytest.mark.parametrize("figure", [compare.forest, compare.retention, compare.margins])
def test_nothing_recorded_is_a_gap(figure):
    assert "52_compare" in texts(figure(pd.DataFrame()))


def test_figures_have_the_same_bytes_twice():
    assert style.png(compare.forest(recorded())) == style.png(compare.forest(recorded()))
