"""SIGKILL while the pipeline distils, at counted file operations: the same bytes in the end.

Three kills; twenty among the long tests.
"""

import dataclasses
import json
import os
import random
import signal
import sys

import pytest
import torch

from lib.distillation import pipeline, quantization_aware
from lib.trainers import checkpoints
from tests.test_distillation_pipeline import folder, home, small  # noqa: F401

MOST = 60  # file operations until a kill, at most
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
pytestmark = pytest.mark.usefixtures("one_thread")


def killed(preset, where, left) -> bool:
    """Run the pipeline in a process of its own that kills itself at its `left`th operation on a file of `where`."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        counted = [left]

        def look(event, given):
            if event in TOUCHES and given and str(where) in str(given[0]):
                counted[0] -= 1
                if not counted[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        pipeline.run(preset, where)
    finally:
        os._exit(0)


@pytest.mark.parametrize("most", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_anywhere_it_ends_in_the_same_bytes(most, small, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(quantization_aware, "CHECKPOINTS", 0)  # after every step
    made = dataclasses.replace(small, start="gptq", code_steps=0.2, windows=32, every=2)
    rows = pipeline.run(made, tmp_path / "undisturbed")
    chance, kills = random.Random(0), 0
    while kills < most:
        where = tmp_path / f"killed after {kills}"
        while kills < most and killed(made, where, chance.randint(1, MOST)):
            kills += 1
        torch.manual_seed(kills)  # the global seed is not what decides
        assert pipeline.run(made, where) == rows
        for path in sorted((tmp_path / "undisturbed" / pipeline.STUDENT).iterdir()):
            content, found = path.read_bytes(), (where / pipeline.STUDENT / path.name).read_bytes()
            assert content == found or json.loads(content) == json.loads(found), path.name
        assert not checkpoints.checkpoints(where / pipeline.TRAINING)
