"""A job that resumes with another model, text, reference or parameter: refused before the work, with its name.

The arguments are those of the signatures: one that is added to a method fails here until its other value is known.
"""

import importlib
import inspect
import pkgutil

import pytest
import torch

from lib import quantizers
from lib.quantizers import calibrate, e2e_qp, learned_zero_points, rtn, sensitivity
from tests import tiny

GRID = {"bits": 3, "group_size": 32}
QUICK = {"steps": 2}
TOKENS = {"count": 3, "length": 16}
SIZED = {"megabytes": 0.065, "group_size": 32}  # where the losses of one window and of two differ in what they allot


def made(seed=0, tied=True):
    return tiny.llama(seed=seed, num_hidden_layers=2, tie_word_embeddings=tied)


def apart(seed=0):
    return made(seed, tied=False)


def rounded(seed=0):
    model = made(seed)
    rtn.quantize_(model, **GRID)
    return model


def planned(bits):
    names = [*calibrate.layers(made()), "model.embed_tokens", "lm_head"]
    return dict.fromkeys(names, 3) | {names[0]: bits}


# what each job is begun with, beside the model and the calibration
BEGUN = {f"{name}.quantize_": GRID for name in quantizers.METHODS} | {
    "int8.quantize_": {"bits": 8, "group_size": -1},
    "signround.quantize_": GRID | QUICK,
    "gptq_signround.quantize_": GRID | QUICK,
    "aimed.quantize_": QUICK | {"types": "Q4_0"},
    "awq.scale_": GRID,
    "allocate.quantize_": SIZED | {"widths": (2, 4), "windows": 2},
    "allocate.apply_": {"plan": planned(3), "group_size": 32},
    "embedding.quantize_": GRID,
    "best.quantize_": GRID | QUICK,
    "best.quantize_ to a size": SIZED | QUICK,
    "best.quantize_ by the clock": GRID | {"minutes": 0.02},
    "e2e_qp.tune_": QUICK,
    "learned_zero_points.tune_": QUICK,
    "sensitivity.measure": {"widths": (2, 4), "group_size": 32, "windows": 2},
}
TUNED = ("e2e_qp.tune_", "learned_zero_points.tune_")
# what starts from a quantized model, and what has an embedding and a head to tell apart
MODELS = dict.fromkeys(TUNED, rounded) | {"embedding.quantize_": apart}
# another legal value of every argument
OTHER = {
    "model": lambda method: MODELS.get(method, made)(seed=1),
    "calibration": lambda _: tiny.tokens(**TOKENS, seed=1),
    "reference": lambda _: made(seed=1),
    "bits": lambda _: 4,
    "types": lambda _: "Q5_0",
    "head_bits": lambda _: 4,
    "group_size": lambda _: 64,
    "symmetric": lambda _: True,
    "levels": lambda _: "half",
    "act_order": lambda _: False,
    "candidates": lambda _: 3,
    "alpha": lambda _: 0.5,
    "threshold": lambda _: 5.0,
    "steps": lambda _: 3,
    "batch": lambda method: 2 if method in TUNED else 1,
    "rate": lambda _: 0.125,
    "range_rate": lambda _: 0.125,
    "filtered": lambda _: 0.1,
    "seed": lambda _: 1,
    "initial": lambda _: quantizers.by_name("rtn")(made(), **GRID),
    "clean": lambda _: torch.zeros(TOKENS["count"], TOKENS["length"], 64),
    "ridge": lambda _: 0.5,
    "norm": lambda _: 0.5,
    "learning_rate": lambda _: 0.125,
    "layer_class": lambda _: learned_zero_points.LearnableZeroPointLinear,
    "megabytes": lambda _: 0.055,
    "minutes": lambda _: 0.03,
    "plan": lambda _: planned(4),
    "widths": lambda _: (2, 3, 4),
    "windows": lambda _: 1,
    "losses": lambda _: {names: {2: 2.0, 4: 1.0} for names in measured()},
}
# by what name the refusal calls it, where that is another: the class by its method, a plan by the bits in it
CALLED = {"layer_class": "method", "plan": "bits"}
CALLED |= {("allocate.quantize_", name): "bits" for name in ("megabytes", "widths", "windows", "losses")}
# of two arguments one is given: what goes when the other comes
INSTEAD = {("best.quantize_", "megabytes"): {"bits": None}, ("best.quantize_ to a size", "bits"): {"megabytes": None}}
INSTEAD[("best.quantize_ by the clock", "megabytes")] = {"bits": None}
# where the work is kept and done (there may be no other device here), who looks on, and when it is left
FREE = ("state", "device", "on_step", "stop")
# minutes say nothing beside steps; some methods look at weights alone
IDLE = {("best.quantize_", "minutes"), ("best.quantize_ to a size", "minutes")}
IDLE |= {(f"{name}.quantize_", "calibration") for name in ("absmax", "zero_point", "rtn", "hqq", "int8")}
ONLY = {("int8.quantize_", "bits"), ("int8.quantize_", "group_size")}  # the one value that there is


def measured():
    return sensitivity.measure(made(), tiny.tokens(**TOKENS), widths=(2, 4), group_size=32)


def function(method):
    module, name = method.split(" ")[0].split(".")
    return getattr(importlib.import_module(f"lib.quantizers.{module}"), name)


def resuming():
    """Every public function of the quantizers that reads a calibration and keeps a state, as `module.function`."""
    found = []
    for module in pkgutil.iter_modules(importlib.import_module("lib.quantizers").__path__):
        for name, each in vars(importlib.import_module(f"lib.quantizers.{module.name}")).items():
            own = inspect.isfunction(each) and each.__module__ == f"lib.quantizers.{module.name}"
            if own and name[0] != "_" and {"calibration", "state"} <= inspect.signature(each).parameters.keys():
                found.append(f"{module.name}.{name}")
    return [*found, "learned_zero_points.tune_"]  # it hands its options to `e2e_qp.tune_`


def arguments(method):
    known = inspect.signature(
        e2e_qp.tune_ if method == "learned_zero_points.tune_" else function(method)
    ).parameters.values()
    names = [each.name for each in known if each.kind is not inspect.Parameter.VAR_KEYWORD]
    return [
        name for name in names if name not in FREE and (method, name) != ("learned_zero_points.tune_", "layer_class")
    ]


JOBS = [name for name in BEGUN if name.split(" ")[0] in resuming()]
EVERY = [(method, argument) for method in JOBS for argument in arguments(method) if (method, argument) not in ONLY]


def work(method, folder, **changes):
    given = {"model": MODELS.get(method, made)(), "calibration": tiny.tokens(**TOKENS)}
    if method in TUNED:
        given["reference"] = made()
    return function(method)(**(given | BEGUN[method] | changes), state=folder)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder in which a job was done, once for all of its arguments."""
    done = {}

    def folder(method):
        if method not in done:
            done[method] = tmp_path_factory.mktemp("state")
            work(method, done[method])
        return done[method]

    return folder


def test_all_that_keeps_a_state_is_asked():
    assert sorted({name.split(" ")[0] for name in JOBS}) == sorted(resuming()) and len(JOBS) > 12


@pytest.mark.parametrize("method, argument", EVERY)
def test_another_value_is_refused_by_name(begun, method, argument):
    assert argument in OTHER, f"give another legal value of {argument} in OTHER, or say in FREE why it decides nothing"
    folder = begun(method)
    change = {argument: OTHER[argument](method)} | INSTEAD.get((method, argument), {})
    if (method, argument) in IDLE:
        assert work(method, folder, **change)
        return
    called = CALLED.get((method, argument), CALLED.get(argument, argument))
    with pytest.raises(ValueError, match=rf"holds another job \(.*\b({called}|{argument})=.*; use the same arguments"):
        work(method, folder, **change)
