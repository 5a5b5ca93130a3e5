"""Relative output errors against a direct product with the layer's inputs."""

import copy

import pytest
import torch

from lib.analysis import layer_error
from lib.quantizers import calibrate, gptq, rtn
from tests import tiny


@torch.no_grad()
def test_equals_the_change_of_the_outputs_on_the_originals_inputs():
    ids = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(0))
    original = tiny.llama()
    models = {"rtn": copy.deepcopy(original), "gptq": copy.deepcopy(original)}
    rtn.quantize_(models["rtn"], bits=3, group_size=32)
    gptq.quantize_(models["gptq"], ids, bits=3, group_size=32)
    found, inputs = layer_error.measure(original, models, ids), {}
    for name, layer in calibrate.layers(original).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0].double()))
    original(input_ids=ids)
    for method, scores in found.items():
        assert scores.keys() == inputs.keys()
        for name, score in scores.items():
            true = inputs[name] @ original.get_submodule(name).weight.double().T
            ours = inputs[name] @ models[method].get_submodule(name).weight.double().T
            assert score.value == pytest.approx(((true - ours).square().sum() / true.square().sum()).item(), rel=1e-3)
            assert 0 < score.stderr < score.value and score.baseline == 1


def test_same_weights_have_no_error_and_zeros_lose_everything():
    weight, hessian = torch.randn(5, 8), torch.eye(8)
    assert layer_error.relative_error(weight, weight, hessian).value == 0
    assert layer_error.relative_error(weight, 0 * weight, hessian).value == pytest.approx(1)


def test_other_shapes_are_refused():
    ids = torch.randint(0, 256, (1, 8))
    with pytest.raises(ValueError, match=r"q_proj is \(64, 64\) in 'other' and \(32, 32\)"):
        layer_error.measure(tiny.llama(hidden_size=32, intermediate_size=128), {"other": tiny.llama()}, ids)
