"""SIGKILL while a model is trained from nothing, at counted file operations and steps: the same bytes in the end.

Three kills; twenty at length, or as many as THIMBLE_KILLS says.
"""

import functools
import json
import os
import random
import signal
import sys

import pytest
import torch

from lib.trainers import checkpoints, from_scratch, held_out, loop
from tests.test_from_scratch import small

STEPS, MANY = 8, int(os.environ.get("THIMBLE_KILLS", 20))
MOST = 12  # file operations and steps until a kill, at most
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
pytestmark = pytest.mark.usefixtures("one_thread")


def train(corpus, folder, watch=None):
    found = from_scratch.train("headwise", corpus, tokens=STEPS * 4 * 32, seed=3, folder=folder, watch=watch)
    return found.history.losses


def killed(corpus, folder, left) -> bool:
    """Train in a process of its own that kills itself at its `left`th step or operation on a file of `folder`."""
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
        train(corpus, folder, watch=count)
    finally:
        os._exit(0)


def files_of(folder):
    kept = [folder / held_out.FILE, *sorted((folder / "model").iterdir())]
    return {path.name: path.read_bytes() for path in [*kept, folder / f"checkpoint-{STEPS}" / checkpoints.TENSORS]}


@pytest.mark.parametrize("most", [3, pytest.param(MANY, marks=pytest.mark.long)])
def test_killed_anywhere_it_ends_in_the_same_bytes(most, tmp_path, monkeypatch):
    monkeypatch.setattr(from_scratch.loop, "train_", functools.partial(loop.train_, every=0))
    corpus = from_scratch.corpus(small(batch=4, micro_batch=4, every=2 * 4 * 32, vocabulary=300))
    losses = train(corpus, tmp_path / "undisturbed")
    chance, kills = random.Random(0), 0
    while kills < most:
        folder = tmp_path / f"killed after {kills}"
        while kills < most and killed(corpus, folder, chance.randint(1, MOST)):
            kills += 1
        torch.manual_seed(kills)  # the global seed is not what decides
        assert train(corpus, folder) == losses
        whole, found = files_of(tmp_path / "undisturbed"), files_of(folder)
        assert whole.keys() == found.keys()
        for name, content in whole.items():
            if name != "manifest.json" or json.loads(content) != json.loads(found[name]):
                assert content == found[name], name
