"""Drift: the measurement against a direct forward pass, and the figure against the table that it draws."""

import copy

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from lib.analysis import error_propagation
from lib.quantizers import calibrate, gptaq, gptq
from lib.report import drift as figures
from lib.report import style
from tests import tiny

GRID = {"bits": 3, "group_size": 32}


def quantized(method, ids):
    model = tiny.llama()
    method.quantize_(model, ids, **GRID)
    return model


def outputs(model, ids):
    """{layer: (inputs, outputs)} of every linear inside the blocks, in float64."""
    seen = {}
    for name, layer in calibrate.layers(model).items():
        layer.register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: (args[0].double(), out.double())})
        )
    with torch.no_grad():
        model(input_ids=ids)
    return seen


@torch.no_grad()
def test_parts_equal_a_direct_pass_in_float64():
    ids = tiny.tokens(3, 24)
    original, other = tiny.llama(), quantized(gptq, ids)
    found = error_propagation.measure(original, {"gptq": other}, ids)["gptq"]
    clean, drifted = outputs(copy.deepcopy(original), ids), outputs(copy.deepcopy(other), ids)
    for index, block in enumerate(found):
        parts = []
        for name in [name for name in clean if f"layers.{index}." in name]:
            answer, before = clean[name][1], drifted[name][0] @ original.get_submodule(name).weight.double().T
            changes = answer - before, before - drifted[name][1], answer - drifted[name][1]
            parts.append([change.square().sum((1, 2)) / answer.square().sum((1, 2)) for change in changes])
        expected = torch.stack([torch.stack(part) for part in parts]).mean((0, 2))
        assert torch.allclose(
            torch.tensor([block.inherited.value, block.own.value, block.total.value]).double(), expected, rtol=1e-3
        )
        assert block.total.n == 3 and block.total.stderr > 0


def test_gptaq_takes_back_more_than_gptq_whose_own_error_knows_nothing_of_the_drift():
    ids = tiny.tokens(16, 64)
    found = error_propagation.measure(tiny.llama(), {"gptq": quantized(gptq, ids), "gptaq": quantized(gptaq, ids)}, ids)
    back = {method: np.mean([block.cancelled.value for block in blocks]) for method, blocks in found.items()}
    assert abs(back["gptq"]) < 0.5 * back["gptaq"]
    assert found["gptaq"][-1].total.value < found["gptq"][-1].total.value


def test_an_untouched_model_does_not_drift():
    found = error_propagation.measure(tiny.llama(), {"same": tiny.llama()}, tiny.tokens(2, 16))["same"]
    assert len(found) == 4
    for block in found:
        assert block.inherited.value == block.own.value == block.total.value == block.cancelled.value == 0


def test_models_of_another_depth_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        error_propagation.measure(tiny.llama(), {"short": tiny.llama(num_hidden_layers=2)}, tiny.tokens(2, 16))


def table(mostly="inherited"):
    base = {"run": "invented", "notebook": "22_gptq", "status": "finished", "time": "2026-01-01T00:00:00", "n": 2}
    lines = []
    for block in range(5):
        for method in ("gptq", "gptaq"):
            for part in ("inherited", "own"):
                value = (0.1 if part == mostly else 0.05) * (1 + block)
                lines.append({"metric": "drift", "part": part, "value": value, "method": method, "block": block})
            value = 0.02 * block * (method == "gptaq") - 0.01
            lines.append({"metric": "cancelled", "value": value, "method": method, "block": block})
    return pd.DataFrame([base | {"stderr": 0.01} | line for line in lines])


def test_the_figure_draws_the_table():
    left, right = figures.drift(table()).axes
    drawn = [[np.asarray(line[0].get_ydata()).tolist() for line in panel.containers] for panel in (left, right)]
    assert np.allclose(drawn[0], [[0.1 * (1 + b) for b in range(5)], [0.05 * (1 + b) for b in range(5)]])
    assert np.allclose(drawn[1], [[-0.01] * 5, [0.02 * b - 0.01 for b in range(5)]])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["GPTQ", "GPTAQ"]
    ends = right.containers[0].lines[2][0].get_segments()
    assert np.allclose([np.ptp(end[:, 1]) for end in ends], 2 * scipy.stats.t.ppf(0.975, 1) * 0.01)


@pytest.mark.parametrize(("mostly", "title"), [("inherited", "Most of the error comes in"), ("own", "Where the error")])
def test_the_headline_claims_what_the_numbers_say(mostly, title):
    assert title in figures.drift(table(mostly)).axes[0].get_title(loc="left")


def test_a_missing_run_shows_a_gap():
    shown = figures.drift(table().iloc[:0])
    assert "run `make report`" in shown.axes[0].texts[-1].get_text()
    assert len(style.png(figures.drift(table()))) < 100_000
