"""The figures on depth pruning draw what the table says, shade what is protected, and show gaps."""

import math

import numpy as np
import pandas as pd
import pytest

from lib.report import pruning

BASE = {"run": "test-data", "status": "finished", "time": "2026-01-01T00:00:00", "stderr": 0.01, "n": 8, "unit": "x"}


def table(rows):
    return pd.DataFrame([BASE | {"notebook": "30_depth_pruning"} | row for row in rows])


def importance(scores, blocks=8, value=lambda score, block: 1 + block):
    return table(
        {"metric": "block_importance", "score": score, "block": block, "value": float(value(score, block))}
        for score in scores
        for block in range(blocks)
    )


def drawn(axes, which=1):
    return [np.asarray(line[0].get_data()[which]).tolist() for line in axes.containers if hasattr(line, "has_yerr")]


def words(axes):
    return " ".join([text.get_text() for text in axes.texts] + [axes.get_title("left")])


def test_importance_has_a_panel_a_score_two_in_a_row_in_the_order_of_the_scores():
    scores = ["angular_distance", "leave_one_out", "taylor_plus"]
    figure = pruning.importance_by_block(importance(scores))
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["Leave one out", "Taylor+", "Angular distance", ""] and not figure.axes[3].axison
    assert "No finished run of: Block influence." in figure.get_supxlabel()


def test_protected_blocks_are_shaded_and_not_among_the_numbered():
    def value(_, block):
        return math.inf if block in (0, 1, 7) else 10 - block

    axes = pruning.importance_by_block(importance(["taylor_plus", "leave_one_out"], value=value)).axes[1]
    assert drawn(axes, 0) == [[2, 3, 4, 5, 6]] and len(axes.patches) == 3
    numbered = {text.get_text(): text.get_position()[0] for text in axes.texts if text.get_text().isdigit()}
    assert numbered == {"1": 6, "2": 5, "3": 4, "4": 3} and "Grey: protected." in words(axes)


def test_scores_without_an_error_promise_none():
    bare = importance(["taylor_plus", "leave_one_out"])
    bare.loc[bare["score"].eq("taylor_plus"), "stderr"] = math.nan
    first, second = pruning.importance_by_block(bare).axes
    assert "95 %" in words(first) and "95 %" not in words(second)


def quality(choices, metrics=("perplexity", "kl_divergence")):
    return table(
        {"metric": metric, "value": 0.0 if metric == "kl_divergence" and not blocks else place + 1.0 + blocks,
         "score": score, "way": way, "blocks": blocks}
        for metric in metrics
        for place, (way, score) in enumerate(choices)
        for blocks in (0, 2, 4)
    )  # fmt: skip


def test_quality_has_a_line_for_each_score_and_way():
    choices = [("one_shot", "leave_one_out"), ("greedy", "leave_one_out"), ("contiguous", "angular_distance")]
    left, right = pruning.quality_by_depth(quality(choices)).axes
    assert drawn(left) == [[1, 3, 5], [2, 4, 6], [3, 5, 7]] and drawn(right) == [[3, 5], [4, 6], [5, 7]]
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["Leave one out", "Leave one out, greedy", "Angular distance, one span"]


def test_every_score_has_a_look_of_its_own():
    axes = pruning.quality_by_depth(quality([("one_shot", score) for score in pruning.SCORES])).axes[0]
    looks = {(line[0].get_color(), line[0].get_marker()) for line in axes.containers}
    assert len(looks) == len(pruning.SCORES)


def costs():
    values = {"throughput": (0.5, 0.8), "prefill": (1000, 1300), "decode": (25, 30), "memory": (6e8, 5e8)}
    return table(
        {"metric": metric, "value": value, "blocks": blocks}
        for metric, both in values.items()
        for blocks, value in zip((0, 8), both)
    )


def test_costs_are_relative_to_the_original_and_bytes_in_megabytes():
    left, right = pruning.cost_by_depth(costs()).axes
    assert [line[1] for line in drawn(left)] == pytest.approx([1.6, 1.3, 1.2])
    assert all(line[0] == 1 for line in drawn(left)) and drawn(right) == [[600, 500]]
    assert right.get_ylim()[0] == 0


def test_without_the_original_there_is_no_relative_speed():
    left, right = pruning.cost_by_depth(costs()[lambda rows: rows["blocks"].eq(8)]).axes
    assert drawn(left) == [] and drawn(right) == [[500]]


@pytest.mark.parametrize("figure", [pruning.importance_by_block, pruning.quality_by_depth, pruning.cost_by_depth])
def test_a_missing_run_is_a_visible_gap(figure):
    other = table([{"metric": "other", "value": 1.0, "score": None, "blocks": 0}])
    assert "no finished run of 30_depth_pruning" in words(figure(other).axes[0]).lower()


def test_quality_by_depth_has_a_line_per_score():
    rows = [
        {"metric": metric, "value": value * (blocks + 1) if blocks or metric == "perplexity" else 0.0, "score": score,
         "blocks": blocks}
        for metric in ("perplexity", "kl_divergence")
        for score, value in (("leave_one_out", 1.0), ("block_influence", 2.0))
        for blocks in (0, 1, 2)
    ]  # fmt: skip
    left, right = pruning.quality_by_depth(table(rows)).axes
    assert drawn(left) == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]] and drawn(right) == [[2.0, 3.0], [4.0, 6.0]]
