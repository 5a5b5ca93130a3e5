"""The figures about healing, on invented data."""

import itertools

import pandas as pd
import pytest
import scipy.stats

from lib.report import healing, style
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


def drawn(figure):
    assert style.png(figure) == style.png(figure) and 5000 < len(style.png(figure)) < 200_000


def test_a_curve_has_a_line_a_way_with_its_intervals():
    figure = healing.curves(recorded())
    (perplexity,) = figure.axes
    assert len(perplexity.containers) == 3
    line, _, bars = perplexity.containers[0]  # distillation is drawn first
    assert line.get_xdata().tolist() == list(AMOUNTS)
    assert line.get_ydata().tolist() == pytest.approx([30, 60, 90])
    ends = bars[0].get_segments()[0][:, 1]
    reach = 2 * scipy.stats.t.ppf(0.975, 7)  # errors of 2 %, over 8 windows
    assert ends.tolist() == pytest.approx([30 - reach, 30 + reach])
    assert perplexity.get_xscale() == "log" and "healing tokens" in perplexity.get_xlabel()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["distillation", "next token, all weights", "next token, adapters"]
    drawn(figure)


def test_the_newest_run_alone_is_drawn():
    older = recorded(run="older").assign(time="2029-01-01T00:00:00+00:00", value=0.99)
    figure = healing.curves(pd.concat([older, recorded()]))
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


def shown_amounts(figure):
    return [axes.containers[0][0].get_xdata().tolist() for axes in figure.axes if axes.containers]


@pytest.mark.parametrize("changed", [{"windows": 64}, {"data_hash": "another text of that name"}])
def test_runs_of_other_test_windows_or_data_are_no_points_of_the_same_line(changed):
    grid = [recorded("taylor", each, f"run-{each}").assign(windows=6, text="wikitext2") for each in (3, 6)]
    other = recorded("taylor", 6, "long").assign(windows=6, text="wikitext2", time="2031-01-01T00:00:00+00:00")
    other = other[other["healing_tokens"].eq(AMOUNTS[-1])].assign(**changed, healing_tokens=499712)
    figure = healing.curves(pd.concat([*grid, other]))
    assert shown_amounts(figure) == [list(AMOUNTS), list(AMOUNTS)]  # the setting with most points, older though it is
    assert "wikitext2 text, 6 test windows" in texts(figure)


def test_which_tasks_a_run_also_asked_changes_no_curve():
    """A run loads its tasks after its texts: rows recorded before that tell which texts it has."""
    runs = []
    for place, (blocks, tasks) in enumerate([(3, "arc"), (6, "needle")]):
        rows = recorded("taylor", blocks, f"run-{blocks}").assign(data_hash=f"texts and {tasks}")
        early = rows.iloc[:1].assign(metric="perplexity", data_hash="texts", way=None)
        runs.append(pd.concat([early, rows]).assign(windows=6, time=f"2030-01-0{place + 1}T00:00:00+00:00"))
    assert shown_amounts(healing.curves(pd.concat(runs))) == [list(AMOUNTS), list(AMOUNTS)]


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


def test_a_task_asked_with_fewer_samples_is_no_point_of_the_same_line():
    grid = pd.concat([asked("arc_easy", 3), asked("needle", 3).assign(n=10), asked("arc_easy", 6)])
    quick = asked("arc_easy", 3).assign(n=20, healing_tokens=77, time="2031-01-01T00:00:00+00:00")
    quick = quick[quick["way"].isin(["distill", "full"])]
    figure = healing.answers(pd.concat([grid, quick]))
    assert shown_amounts(figure)[0] == list(AMOUNTS) and len(shown_amounts(figure)) == 3
    assert {axes.get_ylabel() for axes in figure.axes} >= {"acc of 50 samples, %", "acc of 10 samples, %"}


@pytest.mark.parametrize("figure", [healing.curves, healing.answers])
def test_without_records_the_figure_says_so(figure):
    for table in (pd.DataFrame(), recorded(status="failed"), recorded().drop(columns="way")):
        assert healing.NOTEBOOK in texts(figure(table))
