"""The figures about scales and clips, on invented data."""

import itertools

import numpy as np
import pandas as pd
import pytest

from lib.report import scaling, style
from tests.report_data import base

RUNGS = ["round to nearest", "clip", "AWQ scale", "AWQ scale + clip", "GPTQ", "AWQ scale + GPTQ"]


def texts(figure) -> str:
    found = [text.get_text() for each in figure.axes for text in [*each.texts, each.title, each._left_title]]
    marks = [label.get_text() for each in figure.axes for label in each.get_yticklabels()]
    legends = [text.get_text() for each in figure.axes if each.get_legend() for text in each.get_legend().get_texts()]
    return "\n".join([*found, *marks, *legends])


def drawn(figure) -> None:
    assert style.png(figure) == style.png(figure) and len(style.png(figure)) > 5000


def recorded(metric, **columns) -> dict:
    return base("run-23", scaling.NOTEBOOK, metric=metric, unit="unit", n=4, higher_is_better=False, **columns)


BEST = {"q_proj": 0.3, "o_proj": 0.2, "gate_proj": 0.4, "down_proj": 0.5}


def alphas() -> pd.DataFrame:
    return pd.DataFrame([
        recorded(
            "scaled_error", layer=f"model.layers.{block}.mlp.{kind}", alpha=alpha, stderr=0.0,
            value=1 + block / 100 + (alpha - best) ** 2 - best**2,
        )
        for block, (kind, best), alpha in itertools.product((0, 6), BEST.items(), np.linspace(0, 1, 11))
    ])  # fmt: skip


def ladder(widths=(4, 3)) -> pd.DataFrame:
    pairs = itertools.product(widths, enumerate(RUNGS))
    return pd.DataFrame([
        recorded("kl_divergence", recipe=name, bits=bits, value=0.9 / bits / (1 + place), stderr=0.01)
        for bits, (place, name) in pairs
    ])  # fmt: skip


def test_alpha_marks_the_least_median_of_each_kind():
    figure = scaling.alpha(alphas())
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in (None, "None", "")]
    assert [float(line.get_xdata()[0]) for line in marks] == pytest.approx(list(BEST.values()))
    assert "q, k and v" in texts(figure) and "gate and up" in texts(figure)
    drawn(figure)


def test_clipping_marks_the_best_pair_of_ends():
    ends = np.linspace(0.1, 1, 10)
    pairs = pd.DataFrame(itertools.product(ends, ends), columns=["low", "high"])
    surface = pairs.assign(error=1 + (pairs["low"] - 0.8) ** 2 + (pairs["high"] - 0.4) ** 2 - 0.4)
    weights = pd.DataFrame({"weight": np.linspace(-2, 3, 64), "share": np.full(64, 1 / 64)})
    figure = scaling.clipping(weights, surface)
    best = next(line for line in figure.axes[2].lines if line.get_label() == "least error")
    assert best.get_xdata()[0] == pytest.approx(0.8) and best.get_ydata()[0] == pytest.approx(0.4)
    ends = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert ends == pytest.approx([-2, 3, -1.6, 1.2])
    assert f"{(weights['weight'].between(-1.6, 1.2)).sum()} inside" in texts(figure)
    drawn(figure)


@pytest.mark.parametrize("widths", [(4, 3), (3,)])
def test_recipes_have_a_panel_per_width_and_every_rung(widths):
    figure = scaling.recipes(ladder(widths))
    assert len(figure.axes) == len(widths)
    shown = texts(figure)
    assert all(rung in shown for rung in RUNGS) and "3 bits" in shown
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_fontsize() == 8.5]
        assert len(boxes) == len(RUNGS)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    drawn(figure)


@pytest.mark.parametrize("figure", [scaling.alpha, scaling.recipes])
def test_without_records_the_figure_says_so(figure):
    assert scaling.NOTEBOOK in texts(figure(pd.DataFrame()))
    other = recorded("kl_divergence", value=1.0, stderr=0.1) | {"notebook": "22_gptq", "rung": "x"}
    assert scaling.NOTEBOOK in texts(figure(pd.DataFrame([other])))
