"""SIGKILL while a model is being quantized: the job that resumes ends in the bytes of one that nothing disturbed."""

import inspect
import multiprocessing
import random
import time

import pytest
import torch

from lib import quantizers
from tests import tiny

BLOCKS = 12
GRID = {"bits": 3, "group_size": 32}
QUICK = {"rounding": {"steps": 3}, "refined": {"steps": 3}}  # what keeps a method short
TOKENS = {"count": 4, "length": 48}


def resuming(method):
    return "state" in inspect.signature(quantizers.by_name(method)).parameters


def quantize(method, folder, *, seed=0, **changes):
    """Tensors of the model after the job; `seed` draws the calibration, `changes` go to the method."""
    model = tiny.llama(num_hidden_layers=BLOCKS)
    settings = GRID | QUICK.get(method, {}) | changes
    quantizers.by_name(method)(model, tiny.tokens(**TOKENS, seed=seed), **settings, state=folder)
    return model.state_dict()


def work(method, folder, started):
    """What the killed process does."""
    torch.set_num_threads(1)
    started.set()
    quantize(method, folder)


def finished(folder):
    """Files of finished units of work (of some methods in folders of their own)."""
    return sorted(folder.rglob("block-*.safetensors"))


def killed_until_done(method, folder, total, chance):
    """Start the job over and over and kill it; how much each kill left finished.

    A kill comes at a random moment between two units drawn from those still to do, in the middle of work and of files.
    """
    processes = multiprocessing.get_context("forkserver")
    # processes are forked from one that has imported everything: a new interpreter for each would take seconds
    processes.set_forkserver_preload([__name__, "transformers.models.llama.modeling_llama"])
    left = [0]
    while left[-1] < total:
        started = processes.Event()
        process = processes.Process(target=work, args=(method, folder, started))
        process.start()
        assert started.wait(120), "nothing was started"
        wanted = left[-1] + chance.randint(0, 4)
        while process.is_alive() and len(finished(folder)) < wanted:
            time.sleep(0.001)
        process.join(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        left.append(len(finished(folder)))
    return left


@pytest.mark.parametrize("method", filter(resuming, quantizers.METHODS))
def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path, method):
    whole = quantize(method, tmp_path / "undisturbed")
    total = len(finished(tmp_path / "undisturbed"))
    left = killed_until_done(method, tmp_path / "killed", total, random.Random(method))
    assert total >= BLOCKS and any(0 < count < total for count in left), f"no kill fell into the work: {left}"
    found = quantize(method, tmp_path / "killed")  # reads what the killed processes wrote
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("method", filter(resuming, quantizers.METHODS))
def test_another_calibration_or_parameter_is_refused_and_nothing_is_lost(tmp_path, method):
    whole = quantize(method, tmp_path)
    finished(tmp_path)[3].unlink()
    for change, named in (({"seed": 1}, "calibration="), ({"bits": 4}, "bits=3 there, 4 here")):
        with pytest.raises(ValueError, match=f"{named}.*use the same arguments or a new folder"):
            quantize(method, tmp_path, **change)
    found = quantize(method, tmp_path)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_all_that_calibrate_by_block_resume():
    """A method that walks the blocks and can't resume would be a long job that a kill loses."""
    sources = {name: inspect.getsource(inspect.getmodule(quantizers.by_name(name))) for name in quantizers.METHODS}
    walking = [name for name, source in sources.items() if "calibrate.walk" in source]
    assert walking and all(map(resuming, walking))
