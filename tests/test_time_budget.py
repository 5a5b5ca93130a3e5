"""The recipe's clock: the minutes hold on machines as quick as tried and on ones that become slower, and are refused.

The recipe runs as it is, on a clock that only its passes, matrices and steps move forward.
"""

import copy
import json
import re

import pytest
import torch

from lib import timing
from lib.models import blocks
from lib.quantized.linear import QuantLinear
from lib.quantizers import (
    best,
    calibrate,
    e2e_qp,
    embedding,
    gptq,
    gptq_signround,
    sensitivity,
    signround_layer,
    time_budget,
    trial,
)
from tests import tiny

SIZED = {"megabytes": 0.09, "group_size": 32}
WIDE = {"bits": 3, "group_size": 32}


class World:
    """A clock, and how many times as long everything takes at each moment of it."""

    def __init__(self, slower=lambda now: 1.0):
        self.now, self.slower = 0.0, slower

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += self.slower(self.now) * seconds

    def takes(self, function, seconds):
        """`function`, which takes `seconds(*args)` of this clock."""

        def timed(*args, **options):
            self.spend(seconds(*args))
            return function(*args, **options)

        return timed


@pytest.fixture
def world(monkeypatch):
    """Seconds of the work that counts: a window in a block, a matrix by its weights, steps and divergences."""
    made = World()
    kind = type(blocks.blocks(tiny.llama())[0])
    slow_gptq = made.takes(gptq.gptq, lambda weight, *_: weight.numel() / 2e4)
    monkeypatch.setattr(timing, "clock", made)
    monkeypatch.setattr(kind, "forward", made.takes(kind.forward, lambda _, hidden, *__: 0.02 * len(hidden)))
    monkeypatch.setattr(gptq, "gptq", slow_gptq)
    monkeypatch.setattr(embedding, "gptq", slow_gptq)
    for module, name, seconds in (
        (signround_layer.SignRoundWeight, "step_", lambda *_: 0.05),
        (trial, "rounded", lambda weight, *_: weight.numel() / 1e5),
        (sensitivity, "_divergence", lambda *_: 0.2),
        (e2e_qp, "_step", lambda *_: 2.0),
    ):
        monkeypatch.setattr(module, name, made.takes(getattr(module, name), seconds))
    return made


def run(minutes=1.0, model=None, tokens=None, **options):
    return best.quantize_(
        model or tiny.llama(), tiny.tokens(24, 8) if tokens is None else tokens, minutes=minutes, **options
    )


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for name in first for a, b in zip(first[name][:3], second[name][:3])
    )


def kept(folder):
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("options, seconds", [(WIDE, 45), (WIDE, 90), (SIZED, 75), (SIZED, 120)])
@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_the_minutes_hold(world, options, seconds, slower):
    """`slower` from the middle of the blocks on, which nothing that was tried before can know."""
    world.slower = lambda now: slower if now > 0.5 * seconds else 1.0
    run(seconds / 60, **options)
    assert 0.6 * seconds < world.now <= seconds


def test_tuning_ends_when_the_time_is_out_and_where_it_ended_it_ends_again(world, monkeypatch, tmp_path):
    """Steps that take twice as long as those that were tried."""
    seen, step = [], e2e_qp._step
    monkeypatch.setattr(
        e2e_qp, "_step", lambda *args: seen.append(1) or (len(seen) > 2 and world.spend(2)) or step(*args)
    )
    first = run(1.5, **WIDE, state=tmp_path)
    plan = kept(tmp_path)
    assert 0 < plan["tuned"] < plan["steps"] and len(seen) == 2 + plan["tuned"]
    assert world.now <= 90
    world.slower = lambda now: 10.0
    # the last step was kept: nothing is done again
    assert same(run(1.5, **WIDE, state=tmp_path), first) and len(seen) == 2 + plan["tuned"]


def test_blocks_get_fewer_steps_when_those_before_took_longer_and_a_resumed_job_gets_the_same(
    world, monkeypatch, tmp_path
):
    reconstruct, steps = gptq_signround.signround.reconstruct, []

    def slow(*args, steps_of=steps, **learning):
        steps_of.append(learning["steps"])
        world.now += 6 if len(steps_of) > 1 else 0  # the first call is the trial
        if stop_at == len(steps_of):
            raise KeyboardInterrupt
        return reconstruct(*args, **learning)

    monkeypatch.setattr(gptq_signround.signround, "reconstruct", slow)
    stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        run(1, **WIDE, state=tmp_path)
    before = kept(tmp_path)
    asked = [before[f"rounding of model.layers.{index}"] for index in range(3)]
    assert asked == steps[1:] and asked[0] == before["rounding"] > asked[2]

    stop_at, used, world.now, world.slower = None, world.now, 1000.0, lambda now: 100.0
    run(1, **WIDE, state=tmp_path)
    after = kept(tmp_path)
    assert all(after[name] == value for name, value in before.items() if name != "elapsed")
    assert steps[4] == asked[2] and after["rounding of model.layers.3"] == after["steps"] == 0
    assert after["elapsed"] > before["elapsed"] > 0.5 * used


@pytest.mark.parametrize("options", [WIDE, SIZED])
def test_too_few_minutes_are_refused_with_those_that_suffice(world, options, tmp_path):
    model = tiny.llama()
    with pytest.raises(ValueError, match=r"minutes=0\.1 are too few: on this machine 16 windows") as error:
        run(0.1, model, **options, state=tmp_path)
    assert not any(tmp_path.iterdir())
    assert not any(isinstance(layer, QuantLinear) for layer in calibrate.layers(model).values())
    minutes, world.now = float(re.search(r"give minutes=([0-9.]+) or more", str(error.value))[1]), 0.0
    run(minutes, model, **options, state=tmp_path)
    assert 0.6 * 60 * minutes < world.now <= 60 * minutes


def test_the_least_work_takes_what_was_predicted(world):
    model, tokens = tiny.llama(), tiny.tokens(6, 8)
    parts = time_budget.predict(model, tokens, sized=True, group_size=32, batch=2)
    assert parts["pass"] == pytest.approx(4 * 0.02)

    def taken(work):
        before = world.now
        work()
        return world.now - before

    found = taken(lambda: sensitivity.measure(model, tokens, group_size=32))
    assert found == pytest.approx(parts["measuring"] + time_budget.MEASURED * 6 * parts["pass"], rel=0.15)
    assert taken(lambda: embedding.rounded(model, torch.eye(64), bits=4, group_size=32)) == pytest.approx(
        parts["embedding"]
    )
    for steps in (1, 4):
        found = taken(
            lambda steps=steps: gptq_signround.quantize_(copy.deepcopy(model), tokens, 3, group_size=32, steps=steps)
        )
        expected = 4 * (parts["block"] + steps * parts["step"]) + time_budget.WALKED * 6 * parts["pass"]
        assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"minutes": 2.0}, "minutes=1.0 there, 2.0 here"),
        ({"steps": 2}, "minutes=1.0 there, None here; steps=None there, 2 here"),
        ({"seed": 1}, "seed=0 there, 1 here"),
        ({"bits": 2}, "bits=3 there, 2 here"),
        ({"group_size": 16}, "group_size=32 there, 16 here"),
        ({"bits": None, "megabytes": 0.09}, "bits=3 there, None here; megabytes=None there, 0.09 here"),
        ({"tokens": tiny.tokens(24, 8, seed=1)}, "calibration="),
        ({"model": tiny.llama(seed=1)}, "model="),
    ],
)
def test_another_job_in_the_same_folder_is_refused(world, monkeypatch, tmp_path, change, said):
    monkeypatch.setattr(gptq_signround, "quantize_", lambda *_, **__: {})
    monkeypatch.setattr(e2e_qp, "seconds_per_step", lambda *_: 1e9)
    job = {"minutes": 1.0, "state": tmp_path} | WIDE
    run(**job)
    run(**job)
    with pytest.raises(ValueError, match=f"{said}.*use the same arguments or a new folder"):
        run(**(job | change))


def test_the_widths_of_a_budget_are_kept(world, monkeypatch, tmp_path):
    model, again = tiny.llama(), tiny.llama()
    first = run(2, model, **SIZED, state=tmp_path)
    plan = kept(tmp_path)
    assert plan["bits"] == {name: first[name].bits for name in plan["bits"]} and len(plan["bits"]) == 4 * 7 + 2
    for done in (sensitivity, time_budget):  # neither is asked a second time
        monkeypatch.setattr(done, "measure" if done is sensitivity else "predict", None)
    assert same(run(2, again, **SIZED, state=tmp_path), first)
