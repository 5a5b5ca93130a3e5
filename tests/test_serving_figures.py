"""The figures about serving, on invented records."""

import pandas as pd
import pytest

from lib.report import serving
from tests.test_packed_figures import texts


def table(notebook, metric, rows):
    base = {"run": "r", "metric": metric, "status": "finished", "time": "2026", "notebook": notebook}
    return pd.DataFrame([base | {"stderr": float("nan"), "n": 3} | row for row in rows])


def shown(figure):
    figure.draw_without_rendering()
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    return [*texts(figure), *labels, *(axes.get_xlabel() for axes in figure.axes)]


def test_a_line_for_each_server():
    rows = [{"clients": n, "server": kind, "value": n * 10.0} for n in (1, 4) for kind in ("thimble", "llama.cpp")]
    figure = serving.throughput(table("43_load", "throughput", rows))
    assert {"Thimble", "llama.cpp"} <= set(shown(figure)) and len(figure.axes[0].containers) == 2
    assert not figure.axes[0].get_xlim()[0] > 1
    alone = serving.throughput(table("42_serving", "throughput", [{"clients": 1, "value": 9.0}]))
    assert alone.axes[0].get_legend() is None


def test_percentiles_stand_by_load():
    rows = [
        {"what": what, "share": share, "load": load, "server": "thimble", "value": share / 1e3}
        for what in ("ttft", "tpot") for share in (50, 90, 99) for load in ("half", "all")
    ]  # fmt: skip
    figure = serving.latencies(table("43_load", "latency_percentile", rows))
    assert len(figure.axes) == 2 and {"half", "all"} <= set(shown(figure))
    assert max(line.get_xdata()[-1] for line in figure.axes[0].lines) == pytest.approx(99)
    two = pd.DataFrame([*rows, rows[0] | {"server": "vllm"}])
    assert "vLLM, half" in shown(serving.latencies(table("43_load", "latency_percentile", two.to_dict("records"))))


def test_an_estimate_says_that_it_is_one():
    rows = [{"arm": "4 bits", "value": 0.2}, {"arm": "2 bits", "value": 0.1}]
    estimated = table("44_energy", "estimated_joules_a_token", rows)
    assert any("ESTIMATED" in text for text in shown(serving.energy(estimated)))
    measured = pd.concat([estimated, table("44_energy", "joules_a_token", rows)])
    assert not any("ESTIMATED" in text for text in shown(serving.energy(measured)))


@pytest.mark.parametrize("draw", [serving.throughput, serving.latencies, serving.energy])
def test_gaps_are_shown_without_records(draw):
    assert any("no finished run" in text for text in texts(draw(pd.DataFrame())))
