"""Error propagation: the parts of the error against a direct forward pass."""

import copy

import numpy as np
import pytest
import torch

from lib.analysis import error_propagation
from lib.quantizers import calibrate, gptaq, gptq
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
