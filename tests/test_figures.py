"""The figures, on invented data (see report_data)."""

import itertools
import math
import random

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lib import files
from lib.report import axes, figures, layers, pruning, quality, selection, style
from tests import report_data

EMPTY = pd.DataFrame()


@pytest.fixture(autouse=True)
def no_promises(monkeypatch):
    monkeypatch.setattr(selection, "promised", list)


@pytest.fixture(scope="module")
def table():
    return pd.concat([report_data.benchmark(), report_data.importance(), report_data.errors()], ignore_index=True)


def texts(figure) -> str:
    found = [text.get_text() for each in figure.axes for text in [*each.texts, each.title, each._left_title]]
    return "\n".join([*found, figure.get_suptitle(), figure.get_supxlabel()])


def boxes(panel) -> list:
    """Pixels that the labels beside points cover."""
    panel.figure.draw_without_rendering()
    labels = [text for text in panel.texts if text.get_fontsize() == 8.6 and text.get_text()]
    return [text.get_window_extent() for text in labels]


def test_pareto_is_what_brute_force_finds():
    generator = random.Random(0)
    for _ in range(200):
        points = [(generator.randrange(6), generator.randrange(6)) for _ in range(generator.randrange(1, 12))]
        best = {
            i for i, (x, y) in enumerate(points) if not any(a <= x and b <= y and (a < x or b < y) for a, b in points)
        }
        front = figures.pareto(points)
        assert set(front) == best and len(front) == len(best)
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
    assert figures.pareto([]) == [] and figures.pareto([(1, math.inf)]) == []


def test_quality_labels_every_point_once_and_nothing_overlaps(table):
    for metric in quality.TITLES:
        panel = figures.quality_by_bytes(table, metric).axes[0]
        found = boxes(panel)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(found, 2)), metric
        frame = panel.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in found)
    shown = texts(figures.quality_by_bytes(table))
    for label in ["Original", "RTN 4 bits", "GPTQ 3 bits", "RTN, GPTQ 8 bits", "Depth −2 blocks"]:
        assert shown.count(label) == 1


def test_divergence_is_drawn_at_the_edge_with_its_number_and_leaves_the_scale_alone(table):
    panel = figures.quality_by_bytes(table).axes[0]
    assert panel.get_ylim()[1] < 200 and panel.get_yscale() == "log"
    assert "RTN 2 bits ↑ 506,788" in texts(panel.figure) and "off the scale" in texts(panel.figure)
    infinite = table.assign(value=table["value"].where(table["value"] != 506_788, math.inf))
    assert "RTN 2 bits ↑ inf" in texts(figures.quality_by_bytes(infinite))


def test_intervals_are_95_percent(table):
    panel = figures.quality_by_bytes(table, "top1_agreement").axes[0]
    assert panel.get_yscale() == "linear"
    ends = [segment for bar in panel.containers for segment in bar.lines[2][0].get_segments()]
    (n,) = table[table["metric"].eq("top1_agreement")]["n"].unique()
    assert any(np.allclose(np.ptp(end[:, 1]), 2 * scipy.stats.t.ppf(0.975, n - 1) * 0.004) for end in ends)
    below, above = axes.interval(26.0, 1.0, 3, log=True)
    assert (26 - below) * (26 + above) == pytest.approx(26**2) and below < above
    assert axes.interval(26.0, math.nan, 3, log=True) == axes.interval(math.inf, 1.0, 3, log=False) == (0.0, 0.0)


def test_filled_markers_are_the_front(table):
    data = selection.wide(table)
    front = {data.index[i] for i in figures.pareto(list(zip(data["artifact_bytes"], data["perplexity"])))}
    assert front == {"GPTQ 2 bits", "GPTQ 3 bits", "GPTQ 4 bits", "GPTQ 8 bits", "Original"}
    panel = figures.quality_by_bytes(table).axes[0]
    filled = [bar for bar in panel.containers if bar.lines[0].get_markerfacecolor() != "white"]
    assert len(filled) == len(front) and len(panel.containers) == len(data)


def test_kl_leaves_the_original_out_and_better_can_be_up(table):
    shown = texts(figures.quality_by_bytes(table, "kl_divergence"))
    assert "Original" not in shown and "GPTQ 4 bits" in shown
    assert "higher is better" in figures.quality_by_bytes(table, "top1_agreement").axes[0].get_ylabel()
    with pytest.raises(ValueError, match="choose one of perplexity"):
        figures.quality_by_bytes(table, "speed")


@pytest.mark.parametrize(
    "draw",
    [
        figures.quality_by_bytes,
        figures.quality_by_bits,
        figures.speed_by_bytes,
        figures.memory_by_method,
        pruning.importance_by_block,
        layers.layer_error,
    ],
)
def test_a_missing_run_shows_a_gap_and_a_failed_one_no_old_numbers(draw, table):
    assert "run `make report`" in texts(draw(EMPTY))
    failed = table.assign(status="failed", run=table["run"] + "-again", time="2031-01-01")
    assert "no finished run" in texts(draw(pd.concat([table, failed], ignore_index=True)))
    full = draw(table)
    assert "no finished run" not in texts(full)
    assert len(style.png(full)) < 100_000


def test_what_is_missing_in_part_is_listed_under_the_figure(monkeypatch):
    key = ("gptq", 3, 0)
    promise = dict(model="some/tiny-model", text="packaged", method="gptq", bits=3, blocks=0, group_size=64)
    monkeypatch.setattr(selection, "promised", lambda: [promise, promise | {"model": "other", "bits": 5}])
    partial = report_data.benchmark(without=[key])
    for draw in (figures.quality_by_bytes, figures.speed_by_bytes, figures.memory_by_method):
        shown = texts(draw(partial))
        assert "No finished run of: GPTQ 3 bits." in shown
    failed = pd.DataFrame(report_data.configuration(*key, status="failed"))
    assert selection.missing(pd.concat([partial, failed])) == ["GPTQ 3 bits"]
    assert selection.missing(report_data.benchmark()) == []


def test_promises_come_from_the_batch_file(tmp_path, monkeypatch):
    monkeypatch.undo()
    cell = {
        "cell_type": "code",
        "source": "method = 'none'\nbits = 16\nblocks = 0\n",
        "metadata": {"tags": ["parameters"]},
    }
    import json

    notebook = {"cells": [cell], "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "50_benchmark.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "batches").mkdir()
    path = tmp_path / "batches" / "report.yaml"
    path.write_text("notebooks: [{notebook: 50_benchmark, grid: {method: [rtn], bits: [8, 4]}}]")
    assert [selection.name(each) for each in selection.promised(path)] == ["RTN 8 bits", "RTN 4 bits"]
    assert selection.promised(tmp_path / "none.yaml") == []


def test_only_the_newest_run_of_a_configuration_is_shown(table):
    newer = pd.DataFrame(report_data.configuration("rtn", 4, 0, run="newer", time="2031-01-01"))
    newer.loc[newer["metric"].eq("perplexity"), "value"] = 30.0
    assert selection.wide(pd.concat([newer, table]))["perplexity"]["RTN 4 bits"] == 30.0


def test_labels_name_what_differs_and_settings_are_kept_apart(table):
    other = pd.DataFrame(report_data.configuration("rtn", 4, 0, run="g32")).assign(group_size=32)
    labels = set(selection.wide(pd.concat([table, other]))["method"].index)
    assert {"RTN 4 bits, groups of 32", "RTN 4 bits, groups of 64", "GPTQ 4 bits"} <= labels
    elsewhere = report_data.benchmark(without=[("rtn", 2, 0)], model="another", time="2031-01-01")
    elsewhere["run"] += "-another"
    parts = selection.settings(pd.concat([elsewhere, table]))
    assert [selection.title(part) for part in parts] == [
        "tiny-model on packaged text, 24 windows",
        "another on packaged text, 24 windows",
    ]
    assert selection.name({"method": "depth", "blocks": 1}) == "Depth -1 block"


def test_speed_is_relative_to_the_original_of_the_same_run(table):
    figure = figures.speed_by_bytes(table)
    left = figure.axes[0]
    ratios = [bar.lines[0].get_ydata()[0] for bar in left.containers]
    assert ratios[0] == 1.0 and ratios[1] == pytest.approx(0.95)
    assert "944 tokens/s" in texts(figure)
    alone = table[table["arm"].ne("original") & table["method"].ne("none")]
    assert "no finished run" in texts(figures.speed_by_bytes(alone))


def test_importance_numbers_the_blocks_to_remove_first(table):
    figure = pruning.importance_by_block(table)
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "linear"]
    part = table[table["score"].eq("block_influence")].sort_values("value")
    numbered = {text.get_text(): text.get_position()[0] for text in figure.axes[1].texts if text.get_text().isdigit()}
    assert numbered == {str(i + 1): block for i, block in enumerate(part["block"][: pruning.MARKED])}
    one = texts(pruning.importance_by_block(table[table["score"].eq("leave_one_out")]))
    assert "No finished run of: Block influence." in one


def test_layer_error_has_a_panel_per_kind_and_a_line_per_method(table):
    figure = layers.layer_error(table)
    assert [panel.get_title("left") for panel in figure.axes][:3] == ["q_proj", "k_proj", "v_proj"]
    assert all(len(panel.containers) == 2 for panel in figure.axes[:7])
    assert [text.get_text() for text in figure.axes[7].get_legend().get_texts()] == ["RTN", "GPTQ"]


def test_log_ticks_are_plain_numbers_for_any_range():
    for low, high in [(20, 30), (20, 200), (1, 90), (1, 5000), (1e-3, 1e4)]:
        panel = style.picture().add_subplot()
        axes.span(panel, "y", [low, high], 0.1, log=True)
        panel.figure.draw_without_rendering()
        shown = [tick.get_text() for tick in panel.get_yticklabels()]
        assert 2 <= len(shown) <= 16 and not any("$" in text for text in shown)
    single = style.picture().add_subplot()
    axes.span(single, "x", [0.0], 0.1, log=False)
    assert single.get_xlim() == (-1.0, 1.0)


def test_another_setting_does_not_change_the_names_of_this_one():
    ours = report_data.benchmark()
    other = pd.DataFrame(
        report_data.configuration(
            "gptq", 3, 0, run="long", text="wikitext2", windows=64, calibration_windows=128, data_hash="beef"
        )
    )
    labels = set(selection.main(pd.concat([ours, other]))["label"])
    assert "GPTQ 3 bits" in labels and not any("windows" in label for label in labels)


def test_tasks_that_a_run_reads_after_the_comparison_make_no_other_setting():
    first = report_data.configuration("gptq", 3, 0, run="tasks", engine="packed")
    asked = first[-1] | {"metric": "score", "arm": "compressed", "data_hash": "beef"}
    table = pd.concat([report_data.benchmark(), pd.DataFrame([*first, asked])])
    assert "GPTQ 3 bits, packed" in set(selection.wide(table).index) and len(selection.settings(table)) == 1
    unasked = table[table["run"].eq("tasks") & table["metric"].ne("perplexity")]
    assert set(selection.benchmarks(unasked)["data_hash"]) == {"beef"}


def test_a_gap_names_the_batch_that_fills_it():
    from lib.batches import batch
    from lib.report import recipe

    folder = files.ROOT / "notebooks" / "batches"
    held = {name: {run.notebook.stem for run in batch.read(folder / f"{name}.yaml")} for name in ("report", "methods")}
    assert "54_artifacts" in held["methods"] - held["report"]
    assert "run `python -m lib.sweep notebooks/batches/methods.yaml`" in texts(recipe.allocation(EMPTY))
    assert "22_gptq" in held["report"]
    assert "run `make report`" in texts(layers.layer_error(EMPTY))
    everything = {path.stem for path in folder.parent.glob("*.ipynb")}
    measuring = {name for name in everything if name[0] < "7"}  # those from 70 on read what was published
    assert held["report"] | held["methods"] >= measuring
    assert {name[0] for name in held["report"]} == {name[0] for name in everything}  # one of every chapter at least
