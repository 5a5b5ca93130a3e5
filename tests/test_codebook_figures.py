"""The figures about codebooks, on invented data."""

import numpy as np
import pandas as pd
import pytest

from lib.report import codebooks, style
from tests import report_data
from tests.test_figures import texts


def recorded():
    shared = report_data.base("run-26", "26_codebooks")
    found = [
        {**shared, "metric": metric, "method": method, "bits": bits, "value": 4.0**-bits * (2 + i), "stderr": 1e-4}
        for metric in codebooks.PANELS
        for i, method in enumerate(codebooks.METHODS)
        for bits in (4, 3, 2)
    ]
    saved = [
        {**shared, "metric": "zero_point_saving", "bits": bits, "columns": order, "value": value, "stderr": 0.01}
        for bits in (4, 3, 2)
        for order, value in (("in order", 0.38), ("shuffled", 0.12))
    ]
    return pd.DataFrame(found + saved)


def test_errors_has_a_panel_a_metric_and_a_point_a_method_and_width():
    figure = codebooks.errors(recorded())
    assert [panel.get_title("left") for panel in figure.axes] == list(codebooks.PANELS.values())
    for panel in figure.axes:
        assert len(panel.containers) == len(codebooks.METHODS) and panel.get_yscale() == "log"
        assert all(len(bar.lines[0].get_xdata()) == 3 for bar in panel.containers)
    looks = {style.look(look).colour for look, _ in codebooks.METHODS.values()}
    assert len(looks) == len(codebooks.METHODS)  # no two methods look alike


def test_savings_are_written_on_their_bars():
    shown = texts(codebooks.zero_points(recorded()))
    assert shown.count("38 %") == 3 and shown.count("12 %") == 3


def test_norms_draws_each_distribution_and_says_how_many_err_by_more_than_half_a_step():
    even = np.linspace(0, 0.5, 1000)
    few = np.where(np.arange(1000) < 20, 0.7, 0.5 * even)
    found = {("real-valued", "rtn"): even, ("real-valued", 0.7): even**2}
    found |= {("integer", "rtn"): even, ("integer", 2.0): few, ("integer", "refit"): few}
    left, right = (figure := codebooks.norms(found)).axes
    names = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (left, right)]
    assert names[0] == ["minimum and maximum", "p = 0.7 (HQQ)"] and len(names[1]) == 3
    steps = [patch.get_xy()[:, 1].max() for patch in left.patches]
    assert steps[0] == pytest.approx(2, rel=0.05) and steps[1] > 5  # even, and most of them small
    assert [axes.texts[0].get_text() for axes in (left, right)] == [
        "Off by more than half a step: none of the weights.",
        "Off by more than half a step: 0.0 to 2.0 % of the weights.",
    ]
    style.png(figure)


@pytest.mark.parametrize("draw", [codebooks.errors, codebooks.zero_points])
def test_a_missing_run_shows_a_gap(draw):
    assert "no finished run of 26_codebooks" in texts(draw(pd.DataFrame()))
    failed = recorded().assign(status="failed")
    assert "no finished run" in texts(draw(failed))
