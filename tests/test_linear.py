"""QuantLinear against nn.Linear with the same values."""

import torch
from torch import nn

from lib.quantized.linear import QuantLinear
from lib.quantizers.rtn import rtn


def make(bias=True, symmetric=False, dtype=torch.float32):
    torch.manual_seed(0)
    plain = nn.Linear(32, 12, bias=bias).to(dtype)
    quantized = rtn(plain.weight.detach(), bits=4, group_size=16, symmetric=symmetric)
    return plain, QuantLinear(quantized, plain.bias)


def test_computes_with_the_values_that_the_codes_stand_for():
    for bias in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            plain, layer = make(bias, dtype=dtype)
            x = torch.randn(3, 5, 32).to(dtype)
            expected = nn.functional.linear(x, layer.weight.to(dtype), plain.bias)
            assert torch.equal(layer(x), expected) and layer(x).dtype == dtype


def test_the_kept_matrix_follows_dtype_and_new_codes():
    _, layer = make(bias=False)
    x = torch.randn(2, 32)
    before = layer(x)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    other = make(bias=False)[1]
    other.codes.fill_(0)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), before)
    layer.forget()
    assert torch.equal(layer(x), other(x))


def test_the_scale_keeps_its_dtype_when_the_model_changes():
    _, layer = make()
    layer.scale.fill_(1e-7)  # zero in float16
    half = layer.to(torch.float16)
    assert half.scale.dtype == torch.bfloat16 and (half.scale > 0).all() and half.bias.dtype == torch.float16
    assert half(torch.ones(1, 32, dtype=torch.float16)).dtype == torch.float16


def test_gradients_pass_through_to_the_inputs():
    _, layer = make()
    x = torch.randn(2, 32, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, 32), atol=1e-5)


def test_repr_and_structure_name_the_grid():
    _, layer = make(symmetric=True)
    assert "bits=4, group_size=16, symmetric" in repr(layer)
    assert layer.quantized.zero_point is None and layer.quantized.codes.shape == (12, 32)
