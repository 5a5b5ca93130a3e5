"""The figure of the side-by-side comparison: a row for each arm, a panel for each width, newest records only."""

import pandas as pd

from lib.report import peers, style


def table(*widths):
    rows = []
    for bits in widths:
        for place, arm in enumerate(("none", "rtn", "auto-round", "best")):
            common = {"notebook": "53_peers", "bits": bits, "arm": arm, "n": 4}
            for text in ("one", "two"):
                value = {"metric": "kl_divergence", "value": 2.0 - 0.4 * place, "stderr": 0.05, "text": text}
                rows += [{**common, **value, "value": 9.0}, {**common, **value}]
            rows.append({**common, "metric": "compress_seconds", "value": 10.0 * (place + 1), "stderr": None})
    return pd.DataFrame(rows)


def test_rows_are_arms_from_near_to_far_and_panels_are_widths():
    figure = peers.side_by_side(table(4, 2))
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [style.look(arm).label for arm in ("best", "auto-round", "rtn")]
    assert len(figure.axes) == 3 and figure.axes[0].get_xlim()[1] < 9  # the older records are not drawn
    assert len(peers.side_by_side(table(3)).axes) == 2


def test_a_gap_names_the_notebook_to_run():
    figure = peers.side_by_side(table(3).assign(notebook="29_best_recipe"))
    assert "53_peers" in " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_one_arm_with_more_to_learn_from_does_not_stand_beside_the_others():
    alone = table(3)[lambda rows: rows["arm"].eq("best")].assign(value=0.01, calibration_windows=128, windows=64)
    for earlier, later in ((32, 128), (128, 32)):
        beside = table(3).assign(windows=64, calibration_windows=32)
        both = pd.concat([beside, alone] if earlier < later else [alone, beside])
        assert peers.side_by_side(both).axes[0].get_xlim()[0] > 0.1
    # of two whole comparisons the newest counts
    more = table(3).assign(windows=64, calibration_windows=128, value=lambda rows: rows["value"] + 20)
    assert peers.side_by_side(pd.concat([beside, more])).axes[0].get_xlim()[0] > 15


def test_a_quick_run_does_not_hide_one_in_earnest():
    both = pd.concat([table(3).assign(windows=64), table(3).assign(windows=4, value=0.01)])
    assert peers.side_by_side(both).axes[0].get_xlim()[0] > 0.1
