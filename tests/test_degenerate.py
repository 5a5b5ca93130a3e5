"""Every method on layers that break formulas: singular Hessians, dead columns, constant groups, scales out of range.

In float32, in bfloat16, which is what most models ship in, and where the range matters in float16.
"""

import copy
import inspect

import pytest
import torch

from lib import quantizers
from lib.models.blocks import blocks, embeddings
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear
from lib.quantizers import allocate, calibrate, e2e_qp, embedding, learned_zero_points, rtn
from tests import tiny

USUAL = {"bits": 3, "group_size": 32}
# what keeps a method short, and lets it learn from one window
QUICK = {name: {"steps": 3, "batch": 1} for name in ("signround", "gptq_signround")}
SIZE = {"megabytes": 0.06, "group_size": 32}  # between the fewest bits and the most


def tuned(model, ids, tune_):
    """Codes that rounding to nearest found, tuned against the model as it was."""
    original = copy.deepcopy(model)
    rtn.quantize_(model, ids, **USUAL)
    return tune_(model, ids, original, steps=3)


# what combines methods, and embedding and head: it takes a model and token ids
COMBINED = {
    "tune_": lambda model, ids: tuned(model, ids, e2e_qp.tune_),
    "learned_zero_points": lambda model, ids: tuned(model, ids, learned_zero_points.tune_),
    "embedding": lambda model, ids: embedding.quantize_(model, ids, **USUAL),
    "embedding without calibration": lambda model, ids: embedding.quantize_(model, **USUAL),
    "allocate": lambda model, ids: allocate.quantize_(model, ids, **SIZE),
    "best_": lambda model, ids: quantizers.best_(model, ids, **USUAL, steps=3),
    "best_ to a size": lambda model, ids: quantizers.best_(model, ids, **SIZE, steps=3),
}
METHODS = [*quantizers.METHODS, *COMBINED]
# what a method has no answer for it must refuse before the work; anything else has to succeed
REFUSED: dict[tuple[str, str], str] = {}  # (method, case) -> what its error says


def large(model, value):
    """`value`, or what stands for it in half precision, whose numbers end at 65504."""
    return value**0.1 if model.dtype == torch.float16 else value


def parts(model):
    """The attention and the MLP of each block."""
    return [part for block in blocks(model) for part in (block.self_attn, block.mlp)]


def dead_columns(model):
    for block in blocks(model):
        block.input_layernorm.weight[::7] = 0
        block.post_attention_layernorm.weight[32:] = 0
        block.mlp.up_proj.weight[5:50] = 0


def constant_groups(model):
    for attention, mlp in zip(parts(model)[::2], parts(model)[1::2]):
        attention.q_proj.weight[:, :32] = 0.37
        attention.v_proj.weight[:] = -0.02
        mlp.down_proj.weight[3:9] = 1.0


def zero_groups(model):
    for attention, mlp in zip(parts(model)[::2], parts(model)[1::2]):
        attention.k_proj.weight[:, 32:] = 0
        attention.o_proj.weight[:] = 0
        mlp.gate_proj.weight[::2] = 0


def zero_layers(model):
    for layer in calibrate.layers(model).values():
        layer.weight[:] = 0


def tiny_scales(model):
    for attention, mlp in zip(parts(model)[::2], parts(model)[1::2]):
        attention.v_proj.weight.mul_(1e-38)
        mlp.up_proj.weight.mul_(1e-30)
        mlp.down_proj.weight[:, :32].mul_(1e-42)


def huge_scales(model):
    for attention, mlp in zip(parts(model)[::2], parts(model)[1::2]):
        attention.q_proj.weight.mul_(large(model, 1e30))
        attention.k_proj.weight.mul_(1e-30)
        mlp.gate_proj.weight[7].mul_(-large(model, 1e30))
        mlp.up_proj.weight[7] = 0


def one_outlier(model):
    for layer in calibrate.layers(model).values():
        layer.weight[0, 0] = large(model, 1e4)


def odd_rows_of_the_embedding(model):
    embeddings(model).weight[::3] = 0
    embeddings(model).weight[1::3, 32:] = 0
    embeddings(model).weight[2::6] = 0.37
    embeddings(model).weight[5::12] = -0.02


def zero_embedding(model):
    embeddings(model).weight[:] = 0


def constant_embedding(model):
    embeddings(model).weight[:] = 0.37


def tiny_embedding(model):
    embeddings(model).weight.mul_(1e-36)


def huge_rows_of_the_embedding(model):
    embeddings(model).weight[::2].mul_(large(model, 1e15))  # the squares of larger ones overflow in the model's norms


def huge_embedding(model):
    embeddings(model).weight.mul_(large(model, 1e15))


def untouched(model):
    """The model as it is, for what is wrong with the calibration."""


ONE_WINDOW = tiny.tokens(1, 8)  # fewer tokens than columns: every Hessian is singular
ONE_TOKEN = torch.full((2, 16), 65)  # the same input over and over: Hessians of rank one
CASES = {make.__name__: (make, tiny.tokens(2, 16)) for make in (
    dead_columns, constant_groups, zero_groups, zero_layers, tiny_scales, huge_scales, one_outlier,
    odd_rows_of_the_embedding, zero_embedding, constant_embedding, tiny_embedding, huge_rows_of_the_embedding,
    huge_embedding,
)}  # fmt: skip
CASES |= {"one_window": (untouched, ONE_WINDOW), "one_token": (untouched, ONE_TOKEN)}
CASES |= {"dead_columns_one_token": (dead_columns, ONE_TOKEN), "zero_layers_one_window": (zero_layers, ONE_WINDOW)}
RANGE = ("tiny_scales", "huge_scales", "one_outlier", "tiny_embedding", "huge_rows_of_the_embedding", "huge_embedding")
TYPES = [torch.float32, torch.bfloat16]
TYPED = [(case, dtype) for dtype in TYPES for case in CASES] + [(case, torch.float16) for case in RANGE]


def made(make=untouched, dtype=torch.float32, layers=2):
    model = tiny.llama(num_hidden_layers=layers).to(dtype)
    with torch.no_grad():
        make(model)
    return model


def run(method, model, ids):
    """Quantize with the method's own bits and group size where it has them, else with the usual ones."""
    if method in COMBINED:
        return COMBINED[method](model, ids)
    quantize_ = quantizers.by_name(method)
    known = inspect.signature(quantize_).parameters
    usual = {name: value for name, value in USUAL.items() if known[name].default is inspect.Parameter.empty}
    return quantize_(model, ids, **usual, **QUICK.get(method, {}))


def finite(*tensors):
    return all(tensor is None or tensor.isfinite().all() for tensor in tensors)


def expected(method, model):
    """Names of the matrices that a method quantizes, at least."""
    return {"model.embed_tokens", "lm_head"} if "embedding" in method else calibrate.layers(model).keys()


@pytest.mark.parametrize("case, dtype", TYPED)
@pytest.mark.parametrize("method", METHODS)
def test_everything_stays_finite(method, case, dtype):
    make, ids = CASES[case]
    model = made(make, dtype, layers=2 if dtype == torch.float32 else 1)  # what a block passes on is tried in float32
    with torch.no_grad():
        assert finite(model(input_ids=ids).logits), "the case itself is broken: this would test nothing"
        if (method, case) in REFUSED:
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            with pytest.raises(ValueError, match=REFUSED[method, case]):
                run(method, model, ids)
            assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
            return
        done = run(method, model, ids)
        assert done.keys() >= expected(method, model)
        for quantized in done.values():
            assert isinstance(quantized, Quantized) and finite(quantized.scale, quantized.codebook, quantized.dense())
        assert all(finite(tensor) for tensor in model.state_dict().values())
        assert finite(model(input_ids=ids).logits)


@pytest.mark.parametrize("method", [method for method in METHODS if "embedding" not in method])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_before_the_work(method, value):
    model = made()
    with torch.no_grad():
        blocks(model)[1].mlp.down_proj.weight[3, 5] = value
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj.* holds NaN or infinite values"):
        run(method, model, tiny.tokens(2, 16))
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())


@pytest.mark.parametrize("method", [method for method in METHODS if "embedding" in method])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_embedding_that_is_no_number_is_refused_and_left(method, value):
    model = made()
    with torch.no_grad():
        embeddings(model).weight[3, 5] = value
    table = embeddings(model)
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        run(method, model, tiny.tokens(2, 16))
    assert embeddings(model) is table


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_two_runs_give_the_same_bytes_whatever_the_global_seed(method, dtype):
    states = []
    for seed in (1, 2):
        model = made(dtype=dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.random.get_rng_state()
            run(method, model, tiny.tokens(3, 16))
            assert torch.equal(torch.random.get_rng_state(), before), "the library's global seed was touched"
        states.append(model.state_dict())
    first, second = states
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
