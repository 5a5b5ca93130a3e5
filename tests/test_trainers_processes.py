"""Two processes that share a batch end where one process does."""

import contextlib
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import files
from lib.alignment import on_policy
from lib.pruners import heal
from lib.quantizers import e2e_qp, rtn
from lib.trainers import (
    arguments,
    loop,
    next_token,
    preference_rows,
    preference_training,
    reward_model,
    sequence_packing,
)
from lib.trainers.recipe import Recipe
from tests import tiny
from tests.test_on_policy import asked, plain
from tests.test_preferences import single_rows, texts
from tests.test_training_data import Stream, rows

SETTINGS = {"steps": 3, "learning_rate": 1e-3, "batch": 4, "seed": 0}
SCRIPT = """
import sys
from safetensors.torch import save_model
from lib.pruners import heal
from lib.quantizers import e2e_qp, rtn
from tests import tiny
from tests.test_training_data import Stream, rows
from tests.test_trainers_processes import SETTINGS
target, folder = sys.argv[1:]
model = tiny.llama()
heal.heal_(model, tiny.tokens(8, 24), way="distill", teacher=tiny.llama(seed=1), micro_batch=1, folder=folder,
    **SETTINGS)
import torch.distributed
if torch.distributed.get_rank() == 0:
    save_model(model, target)
"""


@pytest.mark.usefixtures("warm")
def test_two_processes_do_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "script.py"), str(tmp_path / "model.safetensors"), str(tmp_path / "checkpoints")]
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=files.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file

    alone, found = tiny.llama(), load_file(tmp_path / "model.safetensors")
    before = {name: each.clone() for name, each in alone.state_dict().items()}
    heal.heal_(alone, tiny.tokens(8, 24), way="distill", teacher=tiny.llama(seed=1), micro_batch=2, **SETTINGS)
    moved = 0.0
    for name, each in found.items():
        assert torch.allclose(each, alone.state_dict()[name], atol=2e-5), name
        moved += (each - before[name]).abs().sum().item()
    assert moved > 1
    assert [path.name for path in Path(tmp_path / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]


ROWS = """
import json, sys
import torch.distributed
from lib.trainers import loop, next_token
from tests.test_trainers_processes import SETTINGS, preferring, trainings, trained, tuned
found = []
for data, recipe in trainings():
    model = trained()
    history = loop.train_(model, data, next_token.loss, micro_batch=1, recipe=recipe, **SETTINGS)
    found.append([history.losses, history.tokens, sum(each.double().abs().sum().item() for each in model.parameters())])
found.append(tuned())
found.append(preferring(1))
assert torch.distributed.get_backend() == "gloo" and torch.distributed.get_world_size() == 2
if torch.distributed.get_rank() == 0:
    open(sys.argv[1], "w").write(json.dumps(found))
"""


def trained():
    return tiny.llama(num_hidden_layers=2)


def trainings():
    """(Data, recipe) of rows of unequal lengths, of a stream, and of packed documents as from scratch."""
    documents = [list(range(start, start + 3 + start % 9)) for start in range(1, 80)]
    packed = sequence_packing.pack(documents, 16, end=0)
    return [(rows(), None), (Stream(), None), (packed, Recipe(optimizer="muon", schedule="wsd"))]


def tuned():
    """Losses of scales end to end, and the scales."""
    original, losses = trained(), []
    model = copy.deepcopy(original)
    rtn.quantize_(model, bits=3, group_size=32)
    options = {"steps": 3, "batch": 2, "learning_rate": 0.01}
    done = e2e_qp.tune_(model, tiny.tokens(4, 24), original, **options, on_step=lambda _, loss: losses.append(loss))
    return [losses, sum(each.scale.double().sum().item() for each in done.values())]


def preferring(micro_batch):
    """Losses and measures of preferences (KTO's baseline is of both processes), rewards, and own answers."""
    known, found = trained(), []
    pairs = preference_rows.pairs(texts(), tiny.tokenizer(), length=100).towards(known)
    options = SETTINGS | {"batch": 2, "micro_batch": micro_batch}
    for loss in (preference_training.Loss("dpo"), preference_training.Loss("kto"), reward_model.Loss()):
        model, rows = reward_model.headed_(trained()), single_rows().towards(known) if "kto" in str(loss) else pairs
        with reward_model.trained_(model) if isinstance(loss, reward_model.Loss) else contextlib.nullcontext():
            history = loop.train_(model, rows, loss, collate=preference_rows.collate, **options)
        found.append([history.losses, history.measures])
    questions = asked()
    loss = on_policy.Loss(tiny.tokenizer(), questions, plain, reference=known, samples=2, new_tokens=3)
    history = loop.train_(trained(), questions, loss, **options)
    return [*found, [history.losses, history.measures]]


@pytest.mark.usefixtures("warm")
def test_two_processes_of_accelerate_have_the_loss_of_one_on_rows_of_unequal_lengths(tmp_path):
    (tmp_path / "script.py").write_text(ROWS)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(tmp_path / "script.py"), str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=files.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for (data, recipe), (losses, tokens, size) in zip(trainings(), found):
        model = trained()
        history = loop.train_(model, data, next_token.loss, micro_batch=2, recipe=recipe, **SETTINGS)
        assert losses == pytest.approx(history.losses, rel=1e-5) and tokens == history.tokens
        assert size == pytest.approx(sum(each.double().abs().sum().item() for each in model.parameters()), rel=1e-6)
    losses, size = tuned()
    assert found[3][0] == pytest.approx(losses, rel=1e-5) and found[3][1] == pytest.approx(size, rel=1e-5)
    for (losses, measures), (wanted, told) in zip(found[4], preferring(2), strict=True):
        assert losses == pytest.approx(wanted, rel=1e-4, abs=1e-5) and measures.keys() == told.keys()
        for name, each in told.items():
            if name == "accuracy":  # at the start every margin is 0 but for rounding
                measures[name], each = measures[name][1:], each[1:]
            pairs = [(a, b) for a, b in zip(measures[name], each, strict=True) if b is not None]
            assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-3, abs=1e-4), name


def test_batches_that_cannot_be_shared_are_refused(monkeypatch):
    settings = {**SETTINGS, "micro_batch": 2}
    monkeypatch.setattr("transformers.TrainingArguments.world_size", 3)
    with pytest.raises(ValueError, match=r"batch=4 in 3 processes of micro_batch=2 windows; multiples of 6"):
        arguments.make(settings, None, cpu=True)
