"""Ladders: whose records are drawn, what they claim of their rows, and means and spreads over seeds."""

import statistics

import pandas as pd
import pytest

from lib.report import ablations, chapters, style, tables


def run(notebook, values, *, seed=0, bits=3, windows=32, text="wikitext2", day=1, status="finished", **columns):
    """Rows of one run, invented: `values` by rung."""
    shared = {
        "run": f"{notebook}-{day}", "notebook": notebook, "seed": seed, "bits": bits, "windows": windows, "text": text,
        "model": "tiny", "time": f"2030-01-{day:02}", "status": status, "metric": "kl_divergence", "stderr": 0.01,
    } | columns  # fmt: skip
    return pd.DataFrame([{**shared, "rung": rung, "value": value} for rung, value in values.items()])


def rungs(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_each_ladder_of_the_site_draws_its_own_notebook_with_a_caption_that_is_true():
    steps, methods = {"round": 1.0, "+ compensation": 0.5}, {"rtn": 1.2, "hqq": 1.1, "recipe": 0.3}
    table = pd.concat([run("22_gptq", steps), run("29_best_recipe", methods, day=2), run("28_allocation", {"x": 1})])
    shown = chapters.FIGURES
    gptq, recipe = shown["gptq_variants"].draw(table), shown["recipe_variants"].draw(table)
    assert rungs(gptq) == list(steps) and rungs(recipe) == list(methods)
    assert any("adds one thing" in text for text in texts(gptq))
    assert not any("one thing" in text for text in texts(recipe)) and any(
        "the original" in text for text in texts(recipe)
    )
    assert "GPTQ" in shown["gptq_variants"].caption and "recipe" in shown["recipe_variants"].caption


def test_seeds_are_a_mean_with_its_spread_in_the_text():
    values = [0.30, 0.32, 0.37]
    parts = [run("29_best_recipe", {"gptq": v, "recipe": 0.2}, seed=s, day=s + 1) for s, v in enumerate(values)]
    again = run("29_best_recipe", {"gptq": 9.0, "recipe": 0.2}, seed=0, day=20, steps=99)  # another setting
    table = pd.concat([*parts, again, run("29_best_recipe", {"gptq": 0.5}, bits=4, day=9)])
    data = ablations.over_seeds(table, "kl_divergence")
    found = data[data["bits"].eq(3) & data["steps"].eq(0)].set_index("rung").loc["gptq"]
    assert found["value"] == pytest.approx(statistics.mean(values)) and found["seeds"] == 3
    assert found["spread"] == pytest.approx(statistics.stdev(values))
    assert data[data["bits"].eq(4)]["spread"].isna().all()


def test_the_newest_run_of_a_seed_counts_and_a_failed_one_leaves_a_gap():
    old, new = run("29_best_recipe", {"gptq": 0.9}, day=1), run("29_best_recipe", {"gptq": 0.4}, day=2)
    other = run("29_best_recipe", {"gptq": 0.6}, seed=1, day=3)
    (row,) = ablations.over_seeds(pd.concat([old, new, other]), "kl_divergence").to_dict("records")
    assert row["value"] == pytest.approx(0.5) and row["seeds"] == 2
    failed = pd.concat([old, new.assign(status="failed"), other])
    (row,) = ablations.over_seeds(failed, "kl_divergence").to_dict("records")
    assert row["value"] == pytest.approx(0.6) and row["seeds"] == 1


def test_the_spread_of_a_lighter_comparison_stands_beside_the_heavier_ones_values():
    heavy = run("29_best_recipe", {"rtn": 1.0, "gptq": 0.4}, windows=32, steps=50)
    light = [run("29_best_recipe", {"gptq": v}, windows=16, steps=25, seed=s, day=9) for s, v in ((1, 0.5), (2, 0.6))]
    figure = ablations.by_variant(pd.concat([heavy, *light]), "kl_divergence", "29_best_recipe")
    assert "0.4 (spread 0.071 over 2 draws)" in texts(figure) and "1" in texts(figure)
    assert "16 windows" in figure._supxlabel.get_text() and "25 steps" in figure._supxlabel.get_text()
    style.png(figure)


def test_a_quick_run_does_not_hide_one_in_earnest_and_widths_have_panels():
    earnest = [run("29_best_recipe", {"rtn": 1.0 / bits}, bits=bits) for bits in (4, 3, 2)]
    quick = run("29_best_recipe", {"other": 7.0}, windows=4, text="packaged", bits=2, day=9)
    figure = ablations.by_variant(pd.concat([*earnest, quick]), "kl_divergence")
    assert rungs(figure) == ["rtn"] and len(figure.axes) == 3
    assert [axes.get_title("left").endswith(f"{bits} bits") for axes, bits in zip(figure.axes, (4, 3, 2))] == [True] * 3


ALL = {"rtn": 1.0, "hqq": 0.8, "gptq": 0.40, "gptq_signround": 0.35, "recipe": 0.20}


def batch():
    """What the batch file leaves: every method on one draw, GPTQ and the recipe on four more, finished in any order."""
    few = [
        run("29_best_recipe", {"gptq": 0.40 + s / 100, "recipe": 0.20 + s / 200}, seed=s, day=day, methods="gptq")
        for s, day in ((2, 1), (3, 3), (4, 4), (5, 5))
    ]
    return pd.concat([*few, run("29_best_recipe", ALL, seed=1, day=2, methods="rtn, hqq, gptq, gptq_signround")])


def test_rungs_with_more_draws_show_their_spread_beside_those_with_one_in_one_figure():
    figure = ablations.by_variant(batch(), "kl_divergence", "29_best_recipe")
    assert rungs(figure) == list(ALL)  # in the order of the run that has them all
    (axes,) = figure.axes
    assert sorted(axes.containers[0].lines[0].get_xdata()) == pytest.approx([0.214, 0.35, 0.428, 0.8, 1.0])
    shown = [text for text in texts(figure) if text[:1].isdigit()]
    assert shown == ["1", "0.8", "0.428 (spread 0.019 over 5 draws)", "0.35", "0.214 (spread 0.0096 over 5 draws)"]
    style.png(figure)
    # where panels stand side by side, long texts stay in their own
    figure = ablations.by_variant(pd.concat([batch(), batch().assign(bits=2)]), "kl_divergence", "29_best_recipe")
    style.settle(figure)
    for axes in figure.axes:
        inside = axes.get_window_extent()
        for text in axes.texts:
            if "spread" in text.get_text():
                box = text.get_window_extent()
                assert inside.x0 - 3 < box.x0 and box.x1 < inside.x1 + 3


def test_the_ranking_has_every_rung_of_each_width_in_order_with_errors_draws_and_seconds():
    seconds = run("29_best_recipe", {"gptq": 64.0, "recipe": 300.0}, seed=1, day=2).assign(metric="compress_seconds")
    size = run("29_best_recipe", {"gptq": 103_250_000}, seed=1, day=2).assign(metric="artifact_bytes")
    four = run("29_best_recipe", {"recipe": 0.05, "gptq": 0.04}, bits=4, seed=1, day=9)
    other = run("22_gptq", {"gptq": 0.001}, day=10)
    frame = ablations.ranking(pd.concat([batch(), seconds, size, four, other]))
    assert frame.index.tolist() == [4, 4, 3, 3, 3, 3, 3] and frame["Place"].tolist() == [1, 2, 1, 2, 3, 4, 5]
    assert frame["Method"].tolist() == ["gptq", "recipe", "recipe", "gptq_signround", "gptq", "hqq", "rtn"]
    row = frame[frame["Method"].eq("gptq")].loc[3]
    assert row["KL divergence, nats a token"] == "0.428 ± 0.010" and row["Spread"] == "0.019" and row["Draws"] == "5"
    assert row["Seconds"] == "64.00" and row["MB"] == "103.2"
    alone = frame[frame["Method"].eq("hqq")].iloc[0]
    assert alone["Spread"] == "–" and alone["Draws"] == "1" and alone["Seconds"] == "–"
    assert "tiny on wikitext2 text, 32 windows" in frame.attrs["title"]


@pytest.mark.parametrize("sign, metric", [(1, "kl_divergence"), (-1, "top1_agreement")])
def test_the_ranking_says_draw_by_draw_how_far_each_method_is_behind_the_one_above(sign, metric):
    """Calibration texts that are easy or hard for all methods say nothing about the step between two of them."""
    ease, step = [0.0, 0.5, 0.9], [0.10, 0.12, 0.17]
    drawn = [
        run("29_best_recipe", {"gptq_signround": sign * (1 + e), "gptq": sign * (1 + e + s)}, seed=seed, day=seed + 1)
        for seed, (e, s) in enumerate(zip(ease, step))
    ]
    table = pd.concat([*drawn, run("29_best_recipe", {"rtn": sign * 9.0}, seed=0, day=9)])
    table = table.assign(metric=metric, higher_is_better=sign < 0)
    frame = ablations.ranking(table, metric)
    assert frame["Method"].tolist() == ["gptq_signround", "gptq", "rtn"]
    told = tables.fmt(statistics.mean(step), statistics.stdev(step) / 3**0.5)
    assert frame["Behind"].tolist() == ["–", told, "–"]  # rtn shares a single draw with gptq
    assert any("draw by draw" in note for note in frame.attrs["notes"])


def test_the_ranking_of_a_score_that_should_be_high_begins_with_the_highest():
    table = run("29_best_recipe", {"rtn": 0.5, "gptq": 0.9}).assign(metric="top1_agreement", higher_is_better=True)
    assert ablations.ranking(table, "top1_agreement")["Method"].tolist() == ["gptq", "rtn"]


@pytest.mark.parametrize("table", [pd.DataFrame(), run("22_gptq", {"x": 1}), batch().assign(status="failed")])
def test_without_a_finished_ladder_the_ranking_says_what_is_missing(table):
    assert "no finished run of 29_best_recipe yet: run `" in ablations.ranking(table)


def test_variants_keep_their_order_and_a_later_notebook_with_the_same_metric_hides_none():
    variants = run("22_gptq", {"b": 80.0, "a": 40.0, "c": 20.0})
    later = run("50_benchmark", {None: 9.0}, day=2)
    axes = ablations.by_variant(pd.concat([variants, later], ignore_index=True), "kl_divergence").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a", "c"]
    assert axes.containers[0][0].get_xdata().tolist() == [80.0, 40.0, 20.0]
    assert any("no finished run" in text for text in texts(ablations.by_variant(later, "kl_divergence")))
