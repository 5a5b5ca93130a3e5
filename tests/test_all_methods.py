"""The picture of the whole field: every method and peer of three notebooks, on one model and one text."""

import pandas as pd
import pytest

from lib.report import all_methods, selection, style
from tests.report_data import INVENTED, benchmark

TEXT = {"model": "tiny-model", "text": "packaged", "status": "finished"}


def peers(run="p", **columns):
    """Rows of 53_peers, invented: divergence and bytes by arm, and a second text."""
    shared = {**TEXT, "notebook": "53_peers", "run": run, "bits": 3, "windows": 24, "time": "2030-02-01"} | columns
    found = [{**shared, "metric": "kl_divergence", "arm": "none", "value": 0.0, "stderr": 0.0}]
    for place, arm in enumerate(("rtn", "hqq", "best", "auto-round")):
        found += [
            {**shared, "metric": "kl_divergence", "arm": arm, "value": 1.0 - 0.2 * place, "stderr": 0.01},
            {**shared, "metric": "kl_divergence", "arm": arm, "value": 5.0, "stderr": 0.01, "text": "c4"},
            {**shared, "metric": "artifact_bytes", "arm": arm, "value": 100e6 + place, "stderr": 0.0},
        ]
    return pd.DataFrame(found)


def artifacts(**columns):
    shared = {
        **TEXT,
        "notebook": "54_artifacts",
        "run": "a",
        "windows": 12,
        "time": "2030-03-01",
        "bits": None,
    } | columns
    sizes = [("best", "60", 59.9, 0.5), ("best", "90", 89.9, 0.2), ("llama.cpp", "Q3_K_S", 90.0, 0.4)]
    found = pd.DataFrame(sizes, columns=["arm", "kind", "megabytes", "value"])
    return found.assign(**shared, metric="kl_divergence", stderr=0.01)


def ladder(run="l", seed=0, bits=3, sizes=True, values=(), **columns):
    """Rows of 29_best_recipe, invented: divergence and, unless the records are older than that, bytes by rung."""
    shared = {**TEXT, "notebook": "29_best_recipe", "run": run, "bits": bits, "windows": 16, "time": "2030-04-01"}
    shared |= {"seed": seed, "steps": 30, "calibration_windows": 32} | columns
    found = []
    for rung, value in values or (("gptq", 0.4), ("rotation", 0.6), ("recipe", 0.2)):
        size = 160e6 if rung == "rotation" else 103e6
        found.append({**shared, "metric": "kl_divergence", "rung": rung, "value": value, "stderr": 0.01})
        found += [{**shared, "metric": "artifact_bytes", "rung": rung, "value": size, "stderr": 0.0}] * sizes
        found.append({**shared, "metric": "kl_gain", "rung": f"x to {rung}", "value": 0.1, "stderr": 0.01})
    return pd.DataFrame(found)


def everything():
    return pd.concat([benchmark(), peers(), artifacts()], ignore_index=True)


def test_all_three_notebooks_are_in_it_and_each_point_is_where_the_records_say():
    data = all_methods.points(everything())
    compressed = sum(method != "none" for method, *_ in INVENTED)
    assert data["notebook"].value_counts().to_dict() == {
        selection.BENCHMARK: compressed,
        all_methods.PEERS: 4,
        all_methods.ARTIFACTS: 3,
    }
    found = data[data["notebook"].eq(all_methods.PEERS)].set_index("method")
    assert found.loc["auto-round", "value"] == pytest.approx(0.4) and not found.loc["auto-round", "ours"]
    assert found.loc["best", "megabytes"] == pytest.approx(100.000002) and found.loc["best", "ours"]
    assert set(data["text"]) == {"packaged"} and 5.0 not in set(data["value"])
    gptq = data[data["method"].eq("gptq") & data["detail"].eq("GPTQ 3 bits")].iloc[0]
    assert gptq["megabytes"] == pytest.approx(103) and gptq["ours"]


def test_the_legend_names_methods_and_peers_once_and_ours_are_filled():
    figure = all_methods.by_megabytes(everything())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["RTN", "GPTQ", "Depth", "Recipe", "hqq", "auto-round", "llama.cpp"]
    (axes,) = figure.axes
    faces = [container.lines[0].get_markerfacecolor() for container in axes.containers]
    assert [face == "white" for face in faces] == [False] * 4 + [True] * 3
    drawn = [container.lines[0].get_xdata().tolist() for container in axes.containers]
    assert drawn[3] == pytest.approx([59.9, 89.9, 100.000002])
    style.png(figure)


def test_another_model_or_text_a_quick_run_and_a_failed_one_do_not_mix():
    other = [artifacts(text="c4"), artifacts(model="big"), peers("quick", windows=4, time="2031-01-01")]
    failed = peers("failed", status="failed", time="2031-02-01")
    data = all_methods.points(pd.concat([everything(), *other, failed], ignore_index=True))
    pd.testing.assert_frame_equal(data.reset_index(drop=True), all_methods.points(everything()).reset_index(drop=True))
    newer = peers("newer", time="2031-03-01").assign(value=lambda part: part["value"] * 2)
    data = all_methods.points(pd.concat([everything(), newer], ignore_index=True))
    assert data[data["method"].eq("auto-round")]["value"].tolist() == [pytest.approx(0.8)]


def test_one_arm_that_had_more_to_learn_from_takes_no_place_among_its_rivals():
    alone = peers("q", time="2030-02-09", calibration_windows=128)[lambda rows: rows["arm"].eq("best")]
    table = pd.concat([peers(calibration_windows=32), alone.assign(value=0.001)], ignore_index=True)
    data = all_methods.points(pd.concat([everything().query("notebook != '53_peers'"), table], ignore_index=True))
    found = data[data["notebook"].eq(all_methods.PEERS)].set_index("method")["value"]
    assert len(found) == 4 and found["best"] == pytest.approx(0.6)


def test_what_is_not_on_record_is_named():
    figure = all_methods.by_megabytes(artifacts())
    assert "50_benchmark, 53_peers" in figure._supxlabel.get_text()
    gap = all_methods.by_megabytes(peers().query("metric == 'artifact_bytes'"))
    assert any("no finished run" in text.get_text() for axes in gap.axes for text in axes.texts)


def test_rungs_of_the_ladder_stand_at_their_own_size_and_the_recipe_looks_like_the_recipe():
    data = all_methods.points(pd.concat([everything(), ladder(), ladder("two", bits=2)], ignore_index=True))
    found = data[data["notebook"].eq(all_methods.ABLATION)]
    assert len(found) == 6 and found["ours"].all()
    at = found[found["detail"].eq("3")].set_index("method")
    assert at["megabytes"].to_dict() == {"gptq": 103, "rotation": 160, "best": 103}
    assert at["value"].to_dict() == {"gptq": 0.4, "rotation": 0.6, "best": 0.2}
    figure = all_methods.by_megabytes(pd.concat([everything(), ladder()], ignore_index=True))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["RTN", "GPTQ", "Depth", "Recipe", "Rotation", "hqq", "auto-round", "llama.cpp"]
    assert "means over the draws" in figure._supxlabel.get_text()
    assert any("12 to 24 windows by notebook" in text.get_text() for text in figure.axes[0].texts)
    style.png(figure)


def test_rungs_without_a_size_on_record_are_left_out():
    old = ladder(sizes=False)
    data = all_methods.points(pd.concat([everything(), old], ignore_index=True))
    same = all_methods.points(everything())
    pd.testing.assert_frame_equal(data.reset_index(drop=True), same.reset_index(drop=True), check_dtype=False)
    assert (
        all_methods.points(old).empty and "no finished run" in all_methods.by_megabytes(old).axes[0].texts[1].get_text()
    )
    data = all_methods.points(pd.concat([everything(), old, ladder("two", bits=2)], ignore_index=True))
    assert data[data["notebook"].eq(all_methods.ABLATION)]["detail"].tolist() == ["2"] * 3


def test_rungs_are_means_over_their_draws():
    draws = [ladder(f"s{seed}", seed=seed, values=[("gptq", 0.4 + seed / 10)]) for seed in (1, 2)]
    data = all_methods.points(pd.concat([everything(), ladder(), *draws], ignore_index=True))
    found = data[data["notebook"].eq(all_methods.ABLATION)].set_index("method")["value"]
    assert found.to_dict() == pytest.approx({"gptq": 0.5, "rotation": 0.6, "best": 0.2})
