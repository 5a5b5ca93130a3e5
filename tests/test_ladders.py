"""Ladders: whose records are drawn, what they claim of their rows, and means and spreads over seeds."""

import statistics

import pandas as pd
import pytest

from lib.report import grids, ladders, site, style


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
    shown = site.shown()
    gptq, recipe = shown["ladder"][0](table), shown["recipe_ladder"][0](table)
    assert rungs(gptq) == list(steps) and rungs(recipe) == list(methods)
    assert any("adds one thing" in text for text in texts(gptq))
    assert not any("one thing" in text for text in texts(recipe)) and any(
        "the original" in text for text in texts(recipe)
    )
    assert "GPTQ" in shown["ladder"][1] and "recipe" in shown["recipe_ladder"][1]


def test_seeds_are_a_mean_with_its_spread_in_the_text():
    values = [0.30, 0.32, 0.37]
    parts = [run("29_best_recipe", {"gptq": v, "recipe": 0.2}, seed=s, day=s + 1) for s, v in enumerate(values)]
    again = run("29_best_recipe", {"gptq": 9.0, "recipe": 0.2}, seed=0, day=20, steps=99)  # another setting
    table = pd.concat([*parts, again, run("29_best_recipe", {"gptq": 0.5}, bits=4, day=9)])
    data = ladders.draws(table, "kl_divergence")
    found = data[data["bits"].eq(3) & data["steps"].eq(0)].set_index("rung").loc["gptq"]
    assert found["value"] == pytest.approx(statistics.mean(values)) and found["seeds"] == 3
    assert found["spread"] == pytest.approx(statistics.stdev(values))
    assert data[data["bits"].eq(4)]["spread"].isna().all()


def test_the_newest_run_of_a_seed_counts_and_a_failed_one_leaves_a_gap():
    old, new = run("29_best_recipe", {"gptq": 0.9}, day=1), run("29_best_recipe", {"gptq": 0.4}, day=2)
    other = run("29_best_recipe", {"gptq": 0.6}, seed=1, day=3)
    (row,) = ladders.draws(pd.concat([old, new, other]), "kl_divergence").to_dict("records")
    assert row["value"] == pytest.approx(0.5) and row["seeds"] == 2
    failed = pd.concat([old, new.assign(status="failed"), other])
    (row,) = ladders.draws(failed, "kl_divergence").to_dict("records")
    assert row["value"] == pytest.approx(0.6) and row["seeds"] == 1


def test_the_spread_of_a_lighter_comparison_stands_beside_the_heavier_ones_values():
    heavy = run("29_best_recipe", {"rtn": 1.0, "gptq": 0.4}, windows=32, steps=50)
    light = [run("29_best_recipe", {"gptq": v}, windows=16, steps=25, seed=s, day=9) for s, v in ((1, 0.5), (2, 0.6))]
    figure = ladders.ladder(pd.concat([heavy, *light]), "kl_divergence", "29_best_recipe")
    assert "0.4 (spread 0.071 over 2 draws)" in texts(figure) and "1" in texts(figure)
    assert "16 windows" in figure._supxlabel.get_text() and "25 steps" in figure._supxlabel.get_text()
    style.png(figure)


def test_a_quick_run_does_not_hide_one_in_earnest_and_widths_have_panels():
    earnest = [run("29_best_recipe", {"rtn": 1.0 / bits}, bits=bits) for bits in (4, 3, 2)]
    quick = run("29_best_recipe", {"other": 7.0}, windows=4, text="packaged", bits=2, day=9)
    figure = grids.ladder(pd.concat([*earnest, quick]), "kl_divergence")
    assert rungs(figure) == ["rtn"] and len(figure.axes) == 3
    assert [axes.get_title("left").endswith(f"{bits} bits") for axes, bits in zip(figure.axes, (4, 3, 2))] == [True] * 3
