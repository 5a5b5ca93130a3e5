"""The figures about decoding, on invented records."""

import pandas as pd
import pytest
import scipy.stats

from lib.report import decoding, style

KINDS = ["summarization", "code", "chat"]


@pytest.fixture(scope="module")
def table():
    common = dict(run="r", notebook="41_decoding", status="finished", time="2030-01-01", stderr=0.1, n=8)
    made = []
    for place, kind in enumerate(KINDS):
        for arm in ("lookup", "speculative"):
            made += [
                dict(common, metric="tokens_per_step", kind=kind, arm=arm, value=2.5 - place / 2),
                dict(common, metric="speed_up", kind=kind, arm=arm, value=2.0 - place / 2),
            ]
    return pd.DataFrame(made)


def texts(figure):
    found = [text.get_text() for each in figure.axes for text in [*each.texts, each.title, each._left_title]]
    return "\n".join(found)


def test_by_kind_has_a_point_per_kind_and_arm(table):
    figure = decoding.by_kind(table)
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == KINDS
    for axes, values in ((left, [2.5, 2.0, 1.5]), (right, [2.0, 1.5, 1.0])):
        assert len(axes.containers) == 2
        assert all(list(bar.lines[0].get_xdata()) == values for bar in axes.containers)
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["prompt lookup", "speculative"]
    ends = left.containers[0].lines[2][0].get_segments()[0]
    assert ends[1][0] - ends[0][0] == pytest.approx(2 * scipy.stats.t.ppf(0.975, 7) * 0.1)


def test_missing_runs_show_a_gap(table):
    drawn = decoding.by_kind(table)
    assert "no finished run" in texts(decoding.by_kind(pd.DataFrame()))
    assert "no finished run" not in texts(drawn) and len(style.png(drawn)) < 100_000
