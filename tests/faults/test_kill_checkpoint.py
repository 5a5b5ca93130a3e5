"""SIGKILL while checkpoints are being saved: the folder holds one whole version, old or new, never a mix."""

import itertools
import os
import random
import time

import pytest
import torch

from lib import folders
from lib.export import compressed_tensors, plain
from lib.sources import models
from tests import forked, tiny
from tests.packed import quantize_

KILLS = 8
SAVES = {"plain": plain.save, "packed": compressed_tensors.save}


def version(kind, seed):
    """Version `seed` of the checkpoint; the two differ in every block."""
    model = tiny.llama(seed=seed)
    return model if kind == "plain" else quantize_(model)


def save_for_ever(kind, folder, saved):
    """What the killed process does: save the two versions in turns."""
    for model in itertools.cycle([version(kind, 0), version(kind, 1)]):
        SAVES[kind](model, model.tokenizer, folder)
        saved.set()


@pytest.mark.parametrize("kind", SAVES)
def test_killed_saves_leave_one_whole_version(tmp_path, kind):
    folder, chance = tmp_path / "it", random.Random(kind)
    expected = [version(kind, seed).state_dict() for seed in (0, 1)]
    processes = forked.processes()
    leftovers = set()
    for _ in range(KILLS):
        saved = processes.Event()
        process = processes.Process(target=save_for_ever, args=(kind, folder, saved))
        process.start()
        assert saved.wait(120), "nothing was saved"
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.join()
        leftovers.update(tmp_path.glob(".it.*.tmp"))
        folders.recover(folder)  # puts the old folder back when the kill fell between the two renames
        found = models.load(str(folder))[0].state_dict()
        assert sum(equal(found, state) for state in expected) == 1
    assert leftovers, "no save was cut short: this tests nothing"
    for path in leftovers & set(tmp_path.iterdir()):
        os.utime(path, (time.time() - 2 * folders.GRACE,) * 2)
    model = version(kind, 0)
    SAVES[kind](model, model.tokenizer, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
