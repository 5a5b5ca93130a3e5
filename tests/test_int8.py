"""LLM.int8() against the paper's equations in float64: the products and the layer; see test_int8_models for models."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib.quantizers import int8
from lib.quantizers.absmax import absmax
from lib.quantizers.int8 import Int8Linear

INFINITY = float("inf")


def make(rows=12, columns=48, bias=True, threshold=6.0, seed=0):
    """(a linear layer, its codes, the layer with integer products)."""
    torch.manual_seed(seed)
    plain = nn.Linear(columns, rows, bias=bias)
    quantized = absmax(plain.weight.detach(), bits=8, group_size=-1)
    return plain, quantized, Int8Linear(quantized, plain.bias, threshold=threshold)


def inputs(*shape, outliers=(), seed=1):
    X = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    for feature, size in outliers:
        X[..., feature] *= size
    return X


def reference(X, quantized, bias, threshold):
    """The decomposition feature by feature, in float64: Σ_O x w + s_x s_w Σ_rest x_q w_q, an outlier in any token."""
    X = X.reshape(-1, X.shape[-1]).double()
    W_q, s_w = quantized.codes.double() - 128, quantized.scale.double()
    total = torch.zeros(len(X), len(W_q), dtype=torch.double)
    O = [h for h in range(X.shape[1]) if len(X) and X[:, h].abs().max() > threshold]  # noqa: E741
    for h in O:
        total += torch.outer(X[:, h], W_q[:, h] * s_w[:, 0])
    rest = X.clone()
    rest[:, O] = 0
    for token, x in enumerate(rest):
        s_x = x.abs().max() / 127
        if s_x > 0:
            total[token] += (s_x * s_w[:, 0]) * (W_q @ torch.round(x / s_x))
    return total if bias is None else total + bias.double()


@pytest.mark.parametrize("threshold", [0.0, 2.0, 6.0, INFINITY])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (2, 5, 48), (3, 0, 48)])
def test_equals_the_papers_equations_in_float64(shape, dtype, bias, threshold):
    _, quantized, layer = make(bias=bias, threshold=threshold)
    X = inputs(*shape, outliers=[(3, 40), (17, 9)]).to(dtype)
    if bias and dtype == torch.bfloat16:
        layer.bias.data = layer.bias.data.to(dtype)
    found = layer(X)
    expected = reference(X.float(), quantized, layer.bias, threshold).reshape(*shape[:-1], 12)
    assert found.shape == expected.shape and found.dtype == dtype
    if len(expected.flatten()):
        # one code of a tie may fall on the other side: x / s is float32 here
        slack = 1.01 * X.abs().max() / 127 * quantized.dense().abs().max() if threshold else 0
        close = (found - expected).abs() <= (1e-5 if dtype == torch.float32 else 8e-3) * expected.abs().max()
        assert close.float().mean() > 0.98 and (found - expected).abs().max() <= slack + 0.01 * expected.abs().max()


def test_threshold_zero_leaves_the_inputs_alone_and_infinity_quantizes_all():
    _, quantized, layer = make(bias=False, threshold=0.0)
    X = inputs(6, 48, outliers=[(3, 40)])
    X[:, 5] = 0
    weights_alone = X.double() @ quantized.dense().double().T
    assert torch.allclose(layer(X).double(), weights_alone, atol=1e-5)
    X_i8, s_x = int8.quantize_rows(X)
    both = (s_x.double() * X_i8.double()) @ quantized.dense().double().T
    layer.threshold = INFINITY
    assert torch.allclose(layer(X).double(), both, atol=1e-4)


def test_an_outlier_anywhere_takes_the_feature_out_for_every_token():
    X = inputs(4, 48).clamp(-2, 2)
    X[2, 7] = -6.5
    assert int8.outliers(X, 6.0).tolist() == [7] and int8.outliers(X, 6.5).tolist() == []
    assert len(int8.outliers(X, 0.0)) == 48


def test_the_split_saves_what_an_outlier_would_destroy():
    _, quantized, layer = make(bias=False)
    X = inputs(16, 48)
    X[:, 7] = 3000  # a step of 24: every other input of the token becomes zero
    X_i8, _ = int8.quantize_rows(X)
    assert (X_i8 != 0).sum() == 16
    lost = {}
    for threshold in (6.0, INFINITY):
        layer.threshold = threshold
        lost[threshold] = (layer(X) - X @ quantized.dense().T).square().mean()
    assert lost[6.0] < 1e-3 * lost[INFINITY]


@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 300),
    outputs=st.integers(1, 40),
    extreme=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_both_ways_to_multiply_integers_are_exact(rows, columns, outputs, extreme, seed):
    generator = torch.Generator().manual_seed(seed)
    X, W = (torch.randint(-127, 128, (n, columns), generator=generator) for n in (rows, outputs))
    if extreme:
        X, W = X.sign() * 127, W.sign() * 127
    exact = X @ W.T  # in int64
    X, W = X.to(torch.int8), W.to(torch.int8)
    assert torch.equal(int8.integer_product(X, W).long(), exact) and torch.equal(int8._by_floats(X, W).long(), exact)
    assert int8.integer_product(X, W).dtype == int8._by_floats(X, W).dtype == torch.int32


def test_a_product_that_saturates_or_is_missing_is_not_trusted(monkeypatch):
    int8.has_integer_product.cache_clear()
    saturating = lambda X, W: (X.double() @ W.double()).clamp(-(2**15), 2**15 - 1).int()  # noqa: E731
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not int8.has_integer_product("cpu")
    monkeypatch.delattr(torch, "_int_mm")
    int8.has_integer_product.cache_clear()
    assert not int8.has_integer_product("cpu")
    assert int8.integer_product(torch.ones(2, 8, dtype=torch.int8), torch.ones(3, 8, dtype=torch.int8)).unique() == 8
    monkeypatch.undo()
    int8.has_integer_product.cache_clear()


def test_accelerators_get_only_the_shapes_they_take():
    def taken(rows, columns, outputs, device):
        X, W = (torch.empty(n, columns, dtype=torch.int8, device=device) for n in (rows, outputs))
        return int8._taken(X, W)

    assert taken(1, 5, 3, "cpu") and not taken(0, 8, 8, "cpu") and not taken(4, 1, 8, "cpu")
    assert taken(17, 64, 8, "meta") and not any(
        taken(*each, "meta") for each in [(16, 64, 8), (17, 60, 8), (17, 64, 9)]
    )


def test_one_token_with_unusual_strides():
    _, _, layer = make(bias=False)
    X = inputs(1, 48)
    assert torch.equal(layer(X.as_strided((1, 48), (0, 1))), layer(X))
    assert torch.equal(layer(X.expand(3, 48))[1], layer(X)[0])
    both = inputs(48, 5)
    assert torch.equal(layer(both.T), layer(both.T.contiguous()))


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-41, 1e-30, 1e30])
def test_tiny_huge_and_empty_inputs_give_no_nan(size):
    _, _, layer = make(bias=False)
    for threshold in (0.0, 6.0, INFINITY):
        layer.threshold = threshold
        X = inputs(4, 48).clamp(-3, 3) * size
        X[1] = 0
        found = layer(X)
        assert torch.isfinite(found).all() and (found[1] == 0).all()
    dead = Int8Linear(absmax(torch.zeros(3, 8), bits=8, group_size=-1))
    assert (dead(torch.randn(2, 8) * 100) == 0).all()


def test_nan_stays_where_it_is_and_never_becomes_a_number():
    _, _, layer = make(bias=False)
    X = inputs(3, 48)
    X[1, 4] = float("nan")
    found = layer(X)
    assert found[1].isnan().all() and torch.isfinite(found[[0, 2]]).all()


def test_gradients_pass_straight_through_and_leave_the_outputs_alone():
    _, quantized, layer = make()
    X = inputs(5, 48).requires_grad_()
    found = layer(X)
    found.sum().backward()
    with torch.no_grad():
        assert torch.equal(found, layer(X))
    assert torch.allclose(X.grad, quantized.dense().sum(0).expand(5, 48), atol=1e-5)
    assert torch.equal(layer.bias.grad, torch.full((12,), 5.0))


def test_types_and_printing():
    _, _, layer = make()
    half = copy.deepcopy(layer).to(torch.float16)
    assert half.scale.dtype == torch.bfloat16 and half.codes.dtype == torch.int8
    assert half(inputs(2, 48).half()).dtype == torch.float16
    assert "bits=8, group_size=48, symmetric, threshold=6" in repr(layer)
