"""SIGKILL while a model learns preferences or from its own answers, at counted steps and file operations.

THIMBLE_KILLS says how many kills a way; two where it is not set.
"""

import os
import random
import signal
import sys

import pytest
import torch

from lib.alignment import on_policy
from lib.distillation import quantization_aware
from lib.quantizers import rtn
from lib.trainers import checkpoints, loop, preference_rows, preference_training
from tests import tiny
from tests.test_on_policy import asked, plain
from tests.test_preferences import texts

STEPS, KILLS = 6, int(os.environ.get("THIMBLE_KILLS", 2))
MOST = 14  # file operations and steps until a kill, at most
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
pytestmark = pytest.mark.usefixtures("one_thread")


def preferences_by_scales(folder, watch):
    model = tiny.llama(num_hidden_layers=1)
    rtn.quantize_(model, bits=2, group_size=32)
    rows = preference_rows.pairs(texts(), tiny.tokenizer(), length=100).towards(model, folder / "reference")
    options = dict(steps=STEPS, batch=2, micro_batch=1, learning_rate=0.02, collate=preference_rows.collate)
    loss = preference_training.Loss("dpo")
    found = quantization_aware.train_(model, rows, loss, **options, folder=folder / "steps", on_step=watch)
    return found.history


def own_answers(folder, watch):
    model, data = tiny.llama(num_hidden_layers=1), asked()
    loss = on_policy.Loss(tiny.tokenizer(), data, plain, samples=2, beta=0.0, new_tokens=3)
    options = dict(steps=STEPS, batch=2, micro_batch=1, learning_rate=0.02, every=0)
    return loop.train_(model, data, loss, **options, folder=folder / "steps", on_step=watch)


def killed(work, folder, left) -> bool:
    """Work in a process of its own that kills itself at its `left`th step or operation on a file of `folder`."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        counted = [left]

        def count(*_):
            counted[0] -= 1
            if not counted[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        def look(event, given):
            if event in TOUCHES and given and str(folder) in str(given[0]):
                count()

        sys.addaudithook(look)
        work(folder, count)
    finally:
        os._exit(0)


@pytest.mark.parametrize("work", [preferences_by_scales, own_answers])
def test_killed_anywhere_it_ends_in_the_same_bytes(work, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization_aware, "CHECKPOINTS", 0)
    monkeypatch.setattr(preference_rows, "PART", 2)
    whole = work(tmp_path / "undisturbed", lambda *_: None)
    chance, kills = random.Random(work.__name__), 0
    while kills < KILLS:
        folder = tmp_path / f"killed after {kills}"
        while kills < KILLS and killed(work, folder, chance.randint(1, MOST)):
            kills += 1
        torch.manual_seed(kills)  # the global seed is not what decides
        found = work(folder, lambda *_: None)
        assert found.losses == whole.losses and found.measures == whole.measures
        last = f"steps/checkpoint-{STEPS}/{checkpoints.TENSORS}"
        assert (folder / last).read_bytes() == (tmp_path / "undisturbed" / last).read_bytes()
