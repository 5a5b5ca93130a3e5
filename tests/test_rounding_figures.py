"""The figures about learned rounding, on invented data."""

import numpy as np
import pandas as pd
import pytest

from lib.report import rounding, style
from tests import report_data
from tests.test_figures import texts

EMPTY = pd.DataFrame()
VALUES = {"searched ranges": 0.57, "GPTQ": 0.32, "learned": 0.28, "GPTQ, then learned": 0.27}


def recorded():
    shared = report_data.base("run-24", "24_rounding") | {"n": 4, "stderr": 0.01}
    lines = [{"metric": "random_loss", "value": 1 + 0.002 * (draw - 15), "draw": draw} for draw in range(40)]
    lines.append({"metric": "learned_loss", "value": 0.29})
    for rung, value in VALUES.items():
        lines += [{"metric": "relative_loss", "value": value - 0.05 * (bits == 2), "bits": bits, "rung": rung}
                  for bits in (3, 2)]  # fmt: skip
    for start, first in {"searched ranges": 0.25, "GPTQ": 0.08}.items():
        lines += [{"metric": "step_loss", "value": first / (1 + step / 20), "step": step, "start": start}
                  for step in range(40)]  # fmt: skip
    return pd.DataFrame([shared | line for line in lines])


def weights(count=4000, seed=0):
    generator = np.random.default_rng(seed)
    distance = generator.uniform(0, 0.5, count)
    offset = generator.normal(0, 0.09, count).clip(-0.5, 0.5)
    return pd.DataFrame({"offset": offset, "distance": distance, "changed": np.abs(offset) > distance})


def test_the_share_that_changed_is_what_a_count_gives():
    table = weights()
    figure = rounding.offsets(table)
    left, right = figure.axes
    assert sum(bar.get_height() for bar in left.patches) == len(table)
    nearest = table[table["distance"] < 0.025]
    assert right.patches[0].get_height() == pytest.approx(100 * nearest["changed"].mean())
    assert f"{100 * table['changed'].mean():.1f} % of all codes changed" in texts(figure)


def test_each_rung_has_its_value_in_each_panel():
    figure = rounding.ladder(recorded())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["3 bits", "2 bits"]
    for axes, less in zip(figure.axes, (0, 0.05)):
        shown = [text.get_text() for text in axes.texts]
        assert all(f"{value - less:.2f}" in shown for value in VALUES.values())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(VALUES)


def test_curves_show_every_step_of_every_start():
    axes = rounding.curves(recorded()).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [40] * 4
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"from searched ranges", "from GPTQ"}
    assert "The loss over 40 steps" in axes.get_title(loc="left")


@pytest.mark.parametrize("figure", [rounding.curves, rounding.ladder])
def test_nothing_recorded_is_a_gap_that_says_what_to_run(figure):
    assert "24_rounding" in texts(figure(EMPTY))


def test_figures_have_the_same_bytes_twice():
    for draw in (lambda: rounding.ladder(recorded()), lambda: rounding.offsets(weights())):
        assert style.png(draw()) == style.png(draw())
