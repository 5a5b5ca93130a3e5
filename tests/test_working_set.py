"""Peak memory: every method holds the model and one block's working set, however deep the model."""

import inspect

import pytest
import torch

from lib import quantizers
from lib.metrics import divergence
from lib.models import blocks, capture
from lib.quantizers import activations, allocate, calibrate, e2e_qp, embedding, learned_zero_points, sensitivity
from tests import forked, tiny

SIZES = {"hidden_size": 192, "intermediate_size": 768}
WEIGHTS = 4 * (3 * 192 * 192 + 3 * 192 * 768)  # bytes of one block's layers: two square, two of half the rows, the MLP
ROWS = 2 * 192 + 2 * 96 + 2 * 768 + 192  # of one block's layers
SHALLOW, DEEP = 2, 12
GROWTH = 0.15  # share of the added weights by which the peak may grow: codes alone would be 0.25
MOST = 45e6  # bytes, at any depth
QUICK = {"signround": {"steps": 3}, "gptq_signround": {"steps": 3}}  # what keeps a method short
GRIDS = {"int8": {"bits": 8, "group_size": -1}}
UNCALIBRATED = "codebook without calibration"
# with all blocks' activations, with one block's
SCALES = ["e2e_qp", "e2e_qp, recomputed"]
ZERO_POINTS = ["learned_zero_points", "learned_zero_points, recomputed"]


def allocated(model, ids):
    """By losses that are given: measuring them is "sensitivity"."""
    groups = [*((name,) for name in calibrate.layers(model)), ("model.embed_tokens", "lm_head")]
    losses = {names: {2: 2.0, 4: 1.0} for names in groups}
    return allocate.quantize_(model, ids, megabytes=1e3, group_size=32, losses=losses)


# what combines methods, and what stands beside them
COMBINED = {
    "allocate": allocated,
    "sensitivity": lambda model, ids: sensitivity.measure(model, ids, widths=(2, 4), group_size=32, windows=1),
    "embedding": lambda model, ids: embedding.quantize_(model, ids, bits=3, group_size=32),
    "best_": lambda model, ids: quantizers.best_(model, ids, bits=3, group_size=-1, steps=2),
}


def walks(method):
    """Whether it runs the model's blocks; methods without calibration look at weights alone."""
    return "device" in inspect.signature(quantizers.by_name(method)).parameters


def options(method):
    return {"bits": 3, "group_size": 32} | GRIDS.get(method, {}) | QUICK.get(method, {})


def prepared(method, blocks):
    """A function without arguments to measure, on a model of so many blocks that is there already."""
    model = tiny.llama(num_hidden_layers=blocks, **SIZES)
    if method in [*SCALES, *ZERO_POINTS]:
        tokens = tiny.tokens(8, 16)
        original = divergence.remember(model, tokens)
        # a row's scale: what a scale needs beside it, four numbers, shall not be what is measured
        quantizers.by_name("rtn")(model, bits=3, group_size=-1)
        tune_ = e2e_qp.tune_ if method in SCALES else learned_zero_points.tune_
        return lambda: tune_(model, tokens, original, steps=2)
    if method in COMBINED:
        return lambda: COMBINED[method](model, tiny.tokens(8, 64))
    name, tokens = ("codebook", None) if method == UNCALIBRATED else (method, tiny.tokens(8, 64))
    return lambda: quantizers.by_name(name)(model, tokens, **options(name))


def increase(method, blocks, answer):
    """Put the bytes that a method takes on a model of so many blocks, beyond what was there before."""
    from lib.metrics import memory

    torch.set_num_threads(1)
    memory._KEPT = 128 << 10  # such small blocks go back as they are freed: holes that a heap keeps would count as use
    memory._return_blocks(memory._KEPT)
    activations.SHARE = 0 if "recomputed" in method else 1
    prepared(method, 1)()  # what is loaded once, whatever the depth
    answer.put(memory.call(prepared(method, blocks))[1].increase.value)


def in_a_process(*args):
    processes = forked.processes()
    answer = processes.SimpleQueue()
    process = processes.Process(target=increase, args=(*args, answer))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return answer.get()


@pytest.mark.parametrize("method", [*quantizers.METHODS, UNCALIBRATED, *SCALES, *ZERO_POINTS, *COMBINED])
def test_the_working_set_does_not_grow_with_depth(method):
    shallow, deep = (in_a_process(method, blocks) for blocks in (SHALLOW, DEEP))
    told = f"{shallow / 1e6:.1f} MB, then {deep / 1e6:.1f} MB"
    allowed = GROWTH * (DEEP - SHALLOW) * WEIGHTS
    if method in (
        "e2e_qp",
        "learned_zero_points",
    ):  # those that hold the activations of all blocks, those of one step's window
        # the recipe tunes so too, but its walk over all windows, one block at a time, takes more at this depth
        allowed += (DEEP - SHALLOW) * activations.kept(tiny.llama(**SIZES), 16)
    if (
        method in ZERO_POINTS
    ):  # a zero point learns beside each scale, with a gradient and two moments, in small blocks;
        # of both the loop keeps a copy, to which a training that diverges goes back
        allowed += (DEEP - SHALLOW) * ROWS * 14 * 4
    # Hessians, inputs, codes or copies of the weights, kept for all blocks, would be more than that
    assert deep - shallow < allowed and deep < MOST + allowed, told


@pytest.mark.parametrize("method", [*filter(walks, quantizers.METHODS), "best", "allocate", "sensitivity"])
def test_what_does_not_fit_is_refused_before_the_work(method, monkeypatch):
    """Two streams of activations, the original's and the compressed model's, where a method walks with both."""
    model, tokens = tiny.llama(), tiny.tokens(8, 64)
    one = tokens.numel() * (2 * 64 + 4 * 128) * 4
    two = method not in ("gptq", "clip", "codebook", "awq", "rotation")
    call = {
        "best": lambda: quantizers.best_(model, tokens, bits=3, steps=1),
        "allocate": lambda: COMBINED["allocate"](model, tokens),
        "sensitivity": lambda: sensitivity.measure(model, tokens),
    }.get(method, lambda: quantizers.by_name(method)(model, tokens, **options(method)))
    weight = model.model.layers[0].mlp.up_proj.weight
    monkeypatch.setattr(capture, "capture", lambda *_, **__: pytest.fail("the work had begun"))
    monkeypatch.setattr(divergence, "remember", lambda *_, **__: pytest.fail("the work had begun"))
    free = type("Free", (), {"available": int((1.9 if two else 0.9) * one)})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(MemoryError, match="8 windows of 64 tokens"):
        call()
    assert model.model.layers[0].mlp.up_proj.weight is weight


def tuned(kind, model, tokens):
    reference = divergence.remember(model, tokens)
    quantizers.by_name("rtn")(model, bits=3, group_size=32)
    kind.tune_(model, tokens, reference, steps=2)


def allotted(model, tokens):
    plan = dict.fromkeys(["model.embed_tokens", *calibrate.layers(model)], 3)
    allocate.apply_(model, tokens, plan, group_size=32, steps=2)


# what is linear beside the methods; with megabytes the recipe measures sensitivities, which `test_sensitivity` counts
LINEAR = {
    "best": lambda model, tokens: quantizers.best_(model, tokens, bits=3, steps=2, group_size=32),
    "allocate": allotted,
    "e2e_qp": lambda model, tokens: tuned(e2e_qp, model, tokens),
    "learned_zero_points": lambda model, tokens: tuned(learned_zero_points, model, tokens),
    "embedding": lambda model, tokens: embedding.quantize_(model, tokens, bits=4, group_size=32),
}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(each, marks=() if each in LINEAR or each == "gptq" else pytest.mark.long)  # one walk serves all
        for each in [*filter(walks, quantizers.METHODS), *LINEAR]
    ],
)
def test_the_work_is_linear_in_blocks(method):
    """Passes through blocks, counted: as many for each block that is added, wherever it stands."""

    def passes(count):
        model, ids, counted = tiny.llama(num_hidden_layers=count), tiny.tokens(2, 16), []
        kind = type(blocks.blocks(model)[0])
        forward = kind.forward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "forward", lambda *args, **named: counted.append(1) or forward(*args, **named))
            LINEAR[method](model, ids) if method in LINEAR else quantizers.by_name(method)(
                model, ids, **options(method)
            )
        return len(counted)

    for count in (2, 4, 8):
        passes(count)  # what a process tries once of a class of models and its configuration
    few, some, many = passes(2), passes(4), passes(8)
    assert some > few and many - some == 2 * (some - few)
