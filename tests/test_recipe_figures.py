"""The figures about the recipe show what they were given: points, bits, intervals, gaps."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib.report import all_methods, recipe


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def records(metric, entries):
    base = {"metric": metric, "run": "a", "time": "2026-01-01T00:00:00Z", "status": "finished", "notebook": "n"}
    return pd.DataFrame([base | entry for entry in entries])


def artifacts(sizes, **columns):
    """Rows of 54_artifacts, invented: (arm, megabytes, divergence) of each artifact."""
    shared = {"notebook": "54_artifacts", "model": "tiny", "text": "wikitext2", "windows": 12} | columns
    entries = [
        {**shared, "arm": arm, "kind": f"{size}", "megabytes": size, "value": value, "stderr": 0.1 * value}
        for arm, size, value in sizes
    ]
    return records("kl_divergence", entries)


KINDS = ("q_proj, k_proj, v_proj", "o_proj", "gate_proj, up_proj", "down_proj"), ("qkv_proj", "o_proj", "fc1", "fc2")


def layered(metric, values, kinds=KINDS[0]):
    blocks = [
        {"layers": kind, "block": block, "value": values(row, block), "stderr": None}
        for row, kind in enumerate(kinds)
        for block in range(3)
    ]
    return records(metric, [*blocks, {"layers": "embed_tokens, lm_head", "block": None, "value": 4.0, "stderr": None}])


@pytest.mark.parametrize("kinds", KINDS)
def test_allocation_writes_the_bits_of_every_group_and_names_the_rest(kinds):
    figure = recipe.allocation(layered("bits", lambda row, block: 2 + (row + block) % 3, kinds))
    (axes,) = figure.axes
    written = [text.get_text() for text in axes.texts if text.get_text().isdigit()]
    assert written == [str(2 + (row + block) % 3) for row in range(4) for block in range(3)]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(kinds)
    assert any("embed_tokens, lm_head: 4 bits" in text.get_text() for text in axes.texts)


def test_a_quick_run_on_another_text_neither_joins_the_curves_nor_replaces_a_point():
    earnest = artifacts((("best", 60, 0.5), ("best", 90, 0.2), ("llama.cpp", 90, 0.4)))
    own = {"run": "b", "time": "2026-02-01T00:00:00Z", "windows": 2}
    quick = artifacts([("best", 60, 7.0)], text="packaged", **own)
    short = artifacts([("best", 60, 8.0), ("best", 120, 0.1)], **own)  # the same text, fewer windows
    other = artifacts([("best", 60, 9.0)], notebook="50_benchmark", **own)
    failed = artifacts([("best", 60, 10.0)], **own | {"windows": 12}, status="failed")
    (axes,) = all_methods.by_megabytes(pd.concat([earnest, quick, short, other, failed])).axes
    drawn = [(bar.lines[0].get_xdata().tolist(), bar.lines[0].get_ydata().tolist()) for bar in axes.containers]
    assert drawn == [([60, 90], [0.5, 0.2]), ([90], [0.4])]
    assert any("wikitext2 text, 12 windows" in text.get_text() for text in axes.texts)


def test_without_records_the_gap_is_shown():
    empty = records("perplexity", [{"value": 1.0, "stderr": None, "block": None, "layers": None}])
    figure = recipe.allocation(empty)
    assert any("no finished run" in text.get_text() for axes in figure.axes for text in axes.texts)
