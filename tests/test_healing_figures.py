"""The figures about healing, on invented data."""

import itertools

import pandas as pd
import pytest

from lib.report import healing, style
from lib.trainers.loop import History
from tests.report_data import base
from tests.test_figures import texts

AMOUNTS = (4096, 32768, 524288)
GAIN = {"distill": 0.2, "full": 0.15, "lora": 0.1}


def recorded(score="block_influence", blocks=6, run="run-31", status="finished"):
    rows = []
    for metric, way, (place, amount) in itertools.product(healing.METRICS, GAIN, enumerate(AMOUNTS)):
        shared = base(run, healing.NOTEBOOK, metric=metric, score=score, removed_blocks=blocks, status=status)
        value = GAIN[way] * (1 + place) * (1.5 if metric == "recovered_perplexity" else 1)
        rows.append({**shared, "way": way, "healing_tokens": amount, "value": value, "stderr": 0.02, "n": 8})
    return pd.DataFrame(rows)


def history(first, last, steps=50):
    losses = [first + (last - first) * step / (steps - 1) for step in range(steps)]
    return History(losses, [2.0 * step for step in range(1, steps + 1)], [1e-3] * steps, 2048)


def drawn(figure):
    assert style.png(figure) == style.png(figure) and 5000 < len(style.png(figure)) < 200_000


def test_the_curve_has_a_line_a_way_with_its_intervals():
    figure = healing.curve(recorded())
    perplexity, kl = figure.axes
    assert len(perplexity.containers) == len(kl.containers) == 3
    line, _, bars = perplexity.containers[0]  # distillation is drawn first
    assert line.get_xdata().tolist() == list(AMOUNTS)
    assert line.get_ydata().tolist() == pytest.approx([30, 60, 90])
    ends = bars[0].get_segments()[0][:, 1]
    assert ends.tolist() == pytest.approx([30 - 3.92, 30 + 3.92])
    assert perplexity.get_xscale() == "log" and "healing tokens" in perplexity.get_xlabel()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["distillation", "next token, all weights", "next token, adapters"]
    drawn(figure)


def test_the_newest_run_alone_is_drawn():
    older = recorded(run="older").assign(time="2029-01-01T00:00:00+00:00", value=0.99)
    figure = healing.curve(pd.concat([older, recorded()]))
    assert figure.axes[0].containers[0][0].get_ydata()[0] == pytest.approx(30)


def test_curves_have_a_panel_for_each_score_and_depth():
    parts = [recorded(s, b, f"{s}{b}") for s, b in itertools.product(("taylor", "leave_one_out"), (4, 6, 8))]
    figure = healing.curves(pd.concat(parts[:-1]))
    assert len(figure.axes) == 6
    shown = texts(figure)
    assert "leave one out, 4 blocks less" in shown and "taylor, 8 blocks less" in shown
    assert shown.count("no finished run") == 1  # the one that was left out
    drawn(figure)


def test_curves_on_another_text_are_not_mixed_in():
    older = recorded().assign(text="other", time="2029-01-01T00:00:00+00:00", healing_tokens=77)
    figure = healing.curves(pd.concat([older, recorded().assign(text="this")]))
    assert figure.axes[0].containers[0][0].get_xdata().tolist() == list(AMOUNTS)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1  # one panel is narrow


def asked(task, blocks, score="leave_one_out"):
    shared = base("run-31", healing.NOTEBOOK, metric="task_score", task=task, score=score, removed_blocks=blocks)
    levels = [("original", 0, 0.9), ("pruned", 0, 0.2)]
    healed = [(way, amount, 0.2 + gain * place) for way, gain in GAIN.items() for place, amount in enumerate(AMOUNTS)]
    given = [dict(way=way, healing_tokens=amount, value=value) for way, amount, value in levels + healed]
    return pd.DataFrame([{**shared, **each, "measured": "acc", "stderr": 0.02, "n": 50} for each in given])


def test_tasks_stand_between_the_pruned_model_and_the_original():
    table = pd.concat([asked(task, blocks) for task in ("arc_easy", "needle") for blocks in (3, 6)])
    figure = healing.answers(
        pd.concat([asked("arc_easy", 3, "taylor").assign(time="2029-01-01T00:00:00+00:00"), table])
    )
    assert len(figure.axes) == 4 and "needle, 6 blocks less" in texts(figure)
    axes = figure.axes[0]
    assert [line.get_ydata()[0] for line in axes.lines[:2]] == pytest.approx([90, 20])
    assert axes.containers[0][0].get_ydata().tolist() == pytest.approx([20, 40, 60])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == ["original", "pruned"] and len(legend) == 5
    drawn(figure)
    assert "By taylor; bars: 95 %." in texts(
        healing.answers(pd.concat([table, asked("arc_easy", 3, "taylor")]), "taylor")
    )


def test_losses_stand_apart_by_what_they_measure():
    histories = {"distill": history(1.0, 0.3), "full": history(4.0, 3.2), "lora": history(4.0, 3.3)}
    figure = healing.losses(histories)
    assert len(figure.axes) == 2
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert legends[0] == ["distillation, 100 s"] and len(legends[1]) == 2
    assert figure.axes[0].lines[0].get_xdata()[-1] == pytest.approx(50 * 2.048)
    drawn(figure)
    assert len(healing.losses({"full": history(4.0, 3.2, steps=2)}).axes) == 1


@pytest.mark.parametrize("figure", [healing.curve, healing.curves, healing.answers])
def test_without_records_the_figure_says_so(figure):
    for table in (pd.DataFrame(), recorded(status="failed"), recorded().drop(columns="way")):
        assert healing.NOTEBOOK in texts(figure(table))
