"""The figures about rotations, on invented data."""

import numpy as np
import pandas as pd
import pytest

from lib.report import rotation_figures, style
from tests import report_data
from tests.test_figures import texts


def numbers(seed=0):
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=2000)
    loud = np.where(np.arange(2000) % 100 == 0, 25 * normal, normal)
    parts = [("inputs", "before", loud), ("inputs", "after", 7 * normal), ("weights", "before", loud / 50)]
    parts.append(("weights", "after", normal / 50))
    return pd.concat([pd.DataFrame({"what": w, "stage": s, "value": v}) for w, s, v in parts], ignore_index=True)


def recorded(layers=6, **columns):
    shared = report_data.base("run-25", "25_rotation") | columns
    ratios = {"rounding": 0.8, "gain": 1.5, "exposure": 0.9, "output_error": 1.08}
    return pd.DataFrame(
        [
            {**shared, "metric": metric, "layer": f"layer.{index}", "stage": stage, "stderr": 0.0, "n": 1,
             "value": 0.1 * (1 + index) * (ratio * (1 + 0.02 * (index % 2)) if stage == "after" else 1)}
            for metric, ratio in ratios.items() for index in range(layers) for stage in ("before", "after")
        ]
    )  # fmt: skip


def test_distributions_share_a_scale_in_units_of_their_own_size():
    figure = rotation_figures.distributions(numbers())
    inputs, weights = figure.axes
    assert inputs.get_xlabel().startswith("inputs") and weights.get_xlabel().startswith("weights")
    assert inputs.get_xlim() == pytest.approx(weights.get_xlim())  # the same shapes, whatever their units
    legend = [text.get_text() for text in inputs.get_legend().get_texts()]
    assert legend[0].startswith("before: largest") and legend[1] in ("after: largest 3", "after: largest 4")
    assert len(style.png(figure)) < 100_000


def test_factors_show_the_mean_ratio_of_each():
    shown = texts(rotation_figures.factors(recorded()))
    for mean in ("×0.81", "×1.51", "×0.91", "×1.09"):
        assert mean in shown
    assert "6 layers" in shown
    assert "×0.80" in texts(rotation_figures.factors(recorded(layers=1)))


def test_a_missing_or_failed_run_is_a_gap():
    for table in (pd.DataFrame(), recorded(status="failed"), recorded().drop(columns="stage")):
        assert "no finished run of 25_rotation" in texts(rotation_figures.factors(table))
