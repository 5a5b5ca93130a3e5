"""Figures of grids, ladders, depth and before/after: they draw what the table says, and show gaps."""

import numpy as np
import pandas as pd
import pytest

from lib.report import ablations, changes, grids, pruning

BASE = {"run": "test-data", "status": "finished", "time": "2026-01-01T00:00:00", "stderr": 0.1, "n": 8, "unit": "x"}


def table(notebook, rows):
    return pd.DataFrame([BASE | {"notebook": notebook} | row for row in rows])


def empty(metric="other"):
    return table("20_grids", [{"metric": metric, "value": 1.0, "score": None, "blocks": 0}])


def values_on(axes, which=1):
    return [np.asarray(line[0].get_data()[which]).tolist() for line in axes.containers if hasattr(line, "has_yerr")]


def test_weight_histogram_counts_every_weight():
    weights = pd.DataFrame({"weight": np.linspace(-1, 1, 1000), "value": np.round(np.linspace(-1, 1, 1000) * 4) / 4})
    figure = grids.weight_histogram(weights)
    assert sum(patch.get_height() for patch in figure.axes[0].containers[0]) == 1000


def test_grid_error_draws_a_line_per_bit_width_and_per_search():
    rows = [
        {"metric": "weight_error", "value": 4.0**-bits * size**0.5, "bits": bits, "group_size": size, "candidates": c}
        for bits in (2, 4)
        for size, c in ((32, 1), (64, 1), (64, 8))
    ]
    figure = grids.grid_error(table("20_grids", rows))
    left, right = figure.axes
    assert values_on(left) == [[4.0**-2 * 32**0.5, 4.0**-2 * 8], [4.0**-4 * 32**0.5, 4.0**-4 * 8]]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["minimum and maximum", "best of 8 ranges"]


def test_ladder_keeps_the_order_of_the_rungs():
    rows = [{"metric": "perplexity", "value": v, "rung": r} for r, v in (("b", 80.0), ("a", 40.0), ("c", 20.0))]
    axes = ablations.by_variant(table("22_gptq", rows)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a", "c"]
    assert values_on(axes, 0) == [[80.0, 40.0, 20.0]]


def test_a_ladder_is_not_hidden_by_a_later_notebook_that_records_the_same_metric():
    ladder = table("22_gptq", [{"metric": "kl_divergence", "value": 1.0, "rung": "a"}])
    later = table("50_benchmark", [{"metric": "kl_divergence", "value": 9.0}]).assign(run="later", time="2030-01-01")
    axes = ablations.by_variant(pd.concat([ladder, later], ignore_index=True), "kl_divergence").axes[0]
    assert values_on(axes, 0) == [[1.0]]


def test_textbook_draws_both_methods_by_who_shares_a_grid_and_the_arms_by_their_damage():
    rows = [
        {"metric": "textbook_error", "value": value * (1 if method == "absmax" else 0.5), "method": method,
         "granularity": granularity, "bits": bits}
        for bits in (8, 4)
        for granularity, value in (("tensor", 0.9), ("row", 0.1), ("group", 0.01))
        for method in ("absmax", "zero_point")
    ]  # fmt: skip
    damage = {("absmax", "row"): 0.004, ("int8", "row"): 0.02, ("absmax", "tensor"): 0.06}
    rows += [{"metric": "textbook_kl", "value": value, "method": method, "granularity": granularity, "stderr": 1e-4}
             for (method, granularity), value in damage.items()]  # fmt: skip
    left, right = grids.textbook(table("20_grids", rows)).axes
    assert sorted(values_on(left)) == [[0.45, 0.05, 0.005]] * 2 + [[0.9, 0.1, 0.01]] * 2
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["absmax", "zero-point"]
    assert [label.get_text() for label in right.get_yticklabels()] == [
        "absmax, matrix", "LLM.int8(), row", "absmax, row",
    ]  # fmt: skip


def test_what_changed_shows_each_metric_that_is_there():
    rows = [{"metric": m, "value": v, "arm": a} for m in ("perplexity", "top1_agreement") for a, v in
            (("original", 1.0), ("compressed", 2.0))]  # fmt: skip
    figure = changes.what_changed(table("00_start_here", rows))
    assert [[bar.get_height() for bar in axes.patches] for axes in figure.axes] == [[1.0, 2.0]] * 2


def test_quality_by_depth_has_a_line_per_score():
    rows = [
        {"metric": metric, "value": value * (blocks + 1) if blocks or metric == "perplexity" else 0.0, "score": score,
         "blocks": blocks}
        for metric in ("perplexity", "kl_divergence")
        for score, value in (("leave_one_out", 1.0), ("block_influence", 2.0))
        for blocks in (0, 1, 2)
    ]  # fmt: skip
    left, right = pruning.quality_by_depth(table("30_depth_pruning", rows)).axes
    assert values_on(left) == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]] and values_on(right) == [[2.0, 3.0], [4.0, 6.0]]


@pytest.mark.parametrize(
    "figure", [grids.grid_error, ablations.by_variant, grids.textbook, changes.what_changed, pruning.quality_by_depth]
)
def test_a_missing_run_is_a_visible_gap(figure):
    frame = empty().assign(bits=None, group_size=None, candidates=None)
    assert "no finished run" in " ".join(text.get_text() for text in figure(frame).axes[0].texts).lower()
