"""SIGKILL while a model is being quantized: the job that resumes ends in the bytes of one that nothing disturbed."""

import contextlib
import copy
import functools
import inspect
import json
import math
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from lib import files, jobs, quantizers
from lib.quantizers import allocate, e2e_qp, embedding, learned_zero_points, rtn, sensitivity
from tests import forked, tiny

BLOCKS = 8
GRID = {"bits": 3, "group_size": 32}
# few steps, which keep a method short, and the only grid that one has
OWN = {"signround": {"steps": 3}, "gptq_signround": {"steps": 3}, "int8": {"bits": 8, "group_size": -1}}
TOKENS = {"count": 4, "length": 48}
UNCALIBRATED = ["absmax", "zero_point", "rtn", "hqq", "int8"]  # these know nothing but the weights
MANY = dict.fromkeys(["absmax", "zero_point", "rtn", "int8"], 32)  # blocks, of which these take few milliseconds each
pytestmark = pytest.mark.usefixtures("one_thread")


def tune_(kind, model, tokens, *, steps, state, **grid):
    """Scales (and zero points) of codes that rounding to nearest found, which takes no time."""
    original = copy.deepcopy(model)
    rtn.quantize_(model, tokens, **grid)
    kind.tune_(model, tokens, original, steps=steps, state=state)


def measure(model, tokens, **options):
    """Losses, as a tensor of the model, so that they are compared as its bytes are."""
    losses = sensitivity.measure(model, tokens, **options)
    numbers = [list(table.values()) for table in losses.values()]
    model.register_buffer("losses", torch.tensor(numbers, dtype=torch.float64))


# what resumes beside the methods, and its arguments
JOBS = {
    "best_": (quantizers.best_, GRID | {"steps": 3}),
    "best_ to a size": (quantizers.best_, {"megabytes": 0.17, "group_size": 32, "steps": 2}),
    "allocate": (allocate.quantize_, {"megabytes": 0.17, "group_size": 32, "widths": (2, 4), "windows": 1}),
    "sensitivity": (measure, {"group_size": 32, "widths": (2, 4), "windows": 1}),
    "tune_": (functools.partial(tune_, e2e_qp), GRID | {"steps": 12}),
    "learned_zero_points": (functools.partial(tune_, learned_zero_points), GRID | {"steps": 12}),
    "embedding": (embedding.quantize_, GRID),
}
ONE = {"embedding"}  # a single unit of work: there is nothing between its beginning and its end
CLOCKED = {  # whose steps the clock decides
    "to bits": GRID | {"minutes": 1},
    "to a size": {"megabytes": 0.17, "group_size": 32, "minutes": 1},
}
CALLS = 10_000  # of theirs, within which the first kill comes
# what may not change, instead of bits
OTHER = {
    "allocate": {"megabytes": 0.2},
    "best_ to a size": {"megabytes": 0.2},
    "sensitivity": {"widths": (2, 3)},
    "int8": {"threshold": 5.0},
}


def quantize(method, folder, *, seed=0, weights=0, **changes):
    """Tensors of the model after the job; the seeds draw calibration and model, `changes` go to the method."""
    model = tiny.llama(num_hidden_layers=MANY.get(method, BLOCKS), seed=weights)
    quantize_, settings = JOBS.get(method) or (quantizers.by_name(method), GRID | OWN.get(method, {}))
    quantize_(model, tiny.tokens(**TOKENS, seed=seed), **(settings | changes), state=folder)
    return model.state_dict()


@contextlib.contextmanager
def counted(at_most=math.inf):
    """Count the calls that lib makes and receives: of its functions, of torch, of files. The last one is a SIGKILL.

    Yields a list with the number of each call that renamed a file or folder, and of the last call. No clock has a part
    in where a kill comes.
    """
    lib, number, seen = f"{files.ROOT / 'lib'}{os.sep}", 0, []

    def count(frame, event, called):
        nonlocal number
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(lib):
            number += 1
            if number >= at_most:
                os.kill(os.getpid(), signal.SIGKILL)
            if called in (os.replace, os.rename):
                seen.append(number)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        seen.append(number)


def work(job, settings, folder, calls):
    """What the killed process does."""
    torch.set_num_threads(1)
    jobs.EVERY = 0  # seconds between two saves of a training
    with counted(calls):
        job(settings, folder)


def ended(job, settings, folder, calls) -> bool:
    """Whether the job came to its end in a process that is killed at its call number `calls`."""
    process = forked.processes().Process(target=work, args=(job, settings, folder, calls))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def finished(folder):
    """Finished units of work: files (of some methods in folders of their own), and the saved steps of a training."""
    found, done = [], 0
    for root, folders, names in os.walk(folder):  # folders come and go meanwhile
        done = max([done, *(int(name[11:]) for name in folders if name.startswith("checkpoint-"))])
        for path in (Path(root) / name for name in names if not Path(root).name.startswith((".", "checkpoint-"))):
            if path.suffix == ".safetensors" or path.match("losses-*.json"):
                found.append(path)
    return sorted([*found, *(folder / f"step {step}" for step in range(done))])


def killed_until_done(method, folder, calls, chance):
    """Start the job over and over and kill it; how much each kill left finished.

    calls: of an undisturbed run, as `counted` has them. The first kill comes before anything takes its place, the
    second in the middle of the work, each later one at a random call of the next quarter, or later after each that came
    before anything more was finished: in the middle of work and of files.
    """
    last, middle = calls[-1], calls[len(calls) // 3 : 1 + 2 * len(calls) // 3]
    left, kills, done = [0], [chance.randint(1, calls[0]), chance.randint(middle[0], middle[-1])], False
    while not done:
        within = last // 4 * 2 ** (left.count(left[-1]) - 1)
        done = ended(quantize, method, folder, kills.pop(0) if kills else chance.randint(1, within))
        left.append(len(finished(folder)))
    return left[:-1]


@pytest.mark.parametrize("method", [*quantizers.METHODS, *JOBS])
def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path, monkeypatch, method):
    monkeypatch.setattr(jobs, "EVERY", 0)
    with counted() as calls:
        whole = quantize(method, tmp_path / "undisturbed")
    total = len(finished(tmp_path / "undisturbed"))
    left = killed_until_done(method, tmp_path / "killed", calls, random.Random(method))
    if method in ONE:
        assert total == 1 and len(left) > 1, f"no kill came before the end: {left}"
    else:
        assert total >= BLOCKS and any(0 < count < total for count in left), f"no kill fell into the work: {left}"
    found = quantize(method, tmp_path / "killed")  # reads what the killed processes wrote
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


def test_the_searches_of_awq_count_as_units(tmp_path):
    quantize("awq", tmp_path)
    assert {path.parent.name for path in finished(tmp_path)} == {"scales", "clips"}


def clocked(job, folder):
    """Tensors of the model behind the recipe on its clock."""
    model = tiny.llama(num_hidden_layers=BLOCKS)
    quantizers.best_(model, tiny.tokens(**TOKENS), **CLOCKED[job], state=folder)
    return model.state_dict()


def decisions(folder):
    """What the clock has decided so far."""
    plan = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").exists() else {}
    return {key: value for key, value in plan.items() if key != "elapsed"}


@pytest.mark.parametrize("job", CLOCKED)
def test_killed_anywhere_the_recipe_keeps_what_its_clock_decided_and_finishes(tmp_path, monkeypatch, job):
    """How many steps there are, no two clocks agree on; with the same decisions the bytes are the same."""
    monkeypatch.setattr(jobs, "EVERY", 0)
    folder, chance, before, seen, done = tmp_path / "killed", random.Random(job), {}, [], False
    while not done:
        # later after each kill that came before anything was decided or finished
        calls = CALLS * 2 ** seen.count((len(before), len(finished(folder))))
        done = ended(clocked, job, folder, chance.randint(1, calls))
        found = decisions(folder)
        assert found.items() >= before.items(), "a decision was made anew"
        before = found
        seen.append((len(found), len(finished(folder))))
    assert any(count > 0 for _, count in seen[:-1]), f"no kill fell into the work: {seen}"
    assert f"rounding of model.layers.{BLOCKS - 1}" in before and "steps" in before
    last = clocked(job, folder)  # reads what the killed processes wrote
    assert decisions(folder) == before

    other = tmp_path / "undisturbed"
    other.mkdir()
    shutil.copy(folder / "plan.json", other)
    whole = clocked(job, other)
    assert decisions(other) == before
    assert last.keys() == whole.keys() and all(torch.equal(last[name], whole[name]) for name in whole)


@pytest.mark.parametrize("method", [*quantizers.METHODS, *JOBS])
def test_another_calibration_or_parameter_is_refused_and_nothing_is_lost(tmp_path, method):
    whole = quantize(method, tmp_path)
    if blocks := sorted(tmp_path.rglob("block-*.safetensors")):
        blocks[min(3, len(blocks) - 1)].unlink()
    parameter = OTHER.get(method, {"bits": 4})
    said = "megabytes=0.17 there, 0.2 here" if method == "best_ to a size" else "bits=3 there, 4 here"
    # what follows from the parameter
    follows = {
        "allocate": "bits=",
        "tune_": "model=",
        "learned_zero_points": "model=",
        "sensitivity": r"widths=\(2, 4\) there",
    }
    follows |= {"int8": "threshold=6.0 there, 5.0 here"}
    said = follows.get(method, said)
    inputs = ({"weights": 1}, "model=") if method in UNCALIBRATED else ({"seed": 1}, "calibration=")
    for change, named in (inputs, (parameter, said)):
        with pytest.raises(ValueError, match=f"{named}.*use the same arguments or a new folder"):
            quantize(method, tmp_path, **change)
    found = quantize(method, tmp_path)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("method", UNCALIBRATED)
def test_what_is_not_used_does_not_decide(tmp_path, method):
    whole = quantize(method, tmp_path)
    found = quantize(method, tmp_path, seed=1)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_all_methods_resume():
    """A method that can't resume would be a long job that a kill loses."""
    assert all("state" in inspect.signature(quantizers.by_name(name)).parameters for name in quantizers.METHODS)
