"""SIGKILL while a model is being trained: the job that resumes ends in the bytes of one that nothing disturbed."""

import contextlib
import json
import random
import time

import pytest
import torch

from lib.pruners import depth, heal
from lib.trainers import adapters, checkpoints, loop, next_token
from tests import forked, tiny

STEPS = 14
SETTINGS = {"steps": STEPS, "batch": 4, "micro_batch": 2, "seed": 3, "every": 0}
pytestmark = pytest.mark.usefixtures("one_thread")


def train(way, folder, *, dropout=0.0, on_step=None, **changes):
    """Tensors of the healed model, and the history; dropout makes the training draw random numbers."""
    teacher, model = tiny.llama(), tiny.llama(attention_dropout=dropout)
    depth.drop_blocks_(model, [2])
    data = tiny.tokens(10, 24)
    settings = SETTINGS | changes
    history = heal.heal_(model, data, way=way, teacher=teacher, first=1, folder=folder, on_step=on_step, **settings)
    return model.state_dict(), history


def work(way, folder, started):
    """What the killed process does."""
    torch.set_num_threads(1)
    torch.manual_seed(time.time_ns() % 2**31)  # the global seed is not what decides the bytes: the checkpoint's is
    train(way, folder, dropout=0.2, on_step=lambda step, loss: started.set())


def done(folder):
    """Steps of the newest checkpoint."""
    found = checkpoints.checkpoints(folder)
    return int(found[-1].name.partition("-")[2]) if found else 0


def killed_until_done(way, folder, chance):
    """Start the job over and over and kill it at random steps, in the middle of work and of files."""
    processes = forked.processes()
    left = [0]
    while left[-1] < STEPS:
        started = processes.Event()
        process = processes.Process(target=work, args=(way, folder, started))
        process.start()
        assert started.wait(240), "nothing was started"
        wanted = left[-1] + chance.randint(1, 6)
        while process.is_alive() and done(folder) < wanted:
            time.sleep(0.001)
        process.join(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        left.append(done(folder))
    return left


@pytest.mark.parametrize("way", ["distill", "lora"])
def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path, way):
    whole, history = train(way, tmp_path / "undisturbed", dropout=0.2)
    left = killed_until_done(way, tmp_path / "killed", random.Random(way))
    assert any(0 < count < STEPS for count in left), f"no kill fell into the work: {left}"
    found, again = train(way, tmp_path / "killed", dropout=0.2)
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    assert again.losses == history.losses and again.learning_rates == history.learning_rates
    assert len(again.seconds) == STEPS and again.seconds == sorted(again.seconds)
    last = f"checkpoint-{STEPS}/{checkpoints.TENSORS}"
    assert (tmp_path / "undisturbed" / last).read_bytes() == (tmp_path / "killed" / last).read_bytes()


def test_without_a_folder_the_bytes_are_the_same(tmp_path):
    kept, _ = train("full", tmp_path)
    alone, _ = train("full", None)
    assert all(torch.equal(kept[name], alone[name]) for name in kept)


def test_a_checkpoint_is_safetensors_and_json_and_only_the_newest_stays(tmp_path):
    train("full", tmp_path)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == [f"checkpoint-{STEPS}"]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]  # held while it trains
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert all(json.loads(path.read_text()) for path in files if path.suffix == ".json")


def test_changed_arguments_are_refused_with_both_values_and_nothing_is_lost(tmp_path):
    whole, _ = train("full", tmp_path)
    for change, named in (
        ({"learning_rate": 1e-5}, "learning_rate=0.0003 there, 1e-05 here"),
        ({"seed": 4}, "seed=3 there, 4 here"),
        ({"steps": STEPS + 1}, f"steps={STEPS} there, {STEPS + 1} here"),
        ({"batch": 2}, "batch=4 there, 2 here"),
    ):
        with pytest.raises(ValueError, match=f"{named}.*use the same arguments or a new folder"):
            train("full", tmp_path, **change)
    with pytest.raises(ValueError, match="loss=next_token there, distill here"):
        train("distill", tmp_path)
    found, _ = train("full", tmp_path)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ((adapters.lora_, {"rank": 4}), (adapters.lora_, {"rank": 4, "alpha": 32}), "alpha=8 there, 32 here"),
        ((adapters.lora_, {"rank": 4}), (adapters.lora_, {"rank": 8}), "alpha=8 there, 16 here.*rank=4 there, 8 here"),
        ((adapters.lora_, {"first": 1}), (adapters.lora_, {"first": 2}), "first=1 there, 2 here"),
        ((adapters.full_, {"first": 1}), (adapters.full_, {"first": 2}), "first=1 there, 2 here"),
        ((adapters.head_and_last_, {"last": 1}), (adapters.head_and_last_, {"last": 2}), "last=1 there, 2 here"),
        ((adapters.full_, {}), (adapters.lora_, {}), "trained=full there, lora here"),
    ],
)
def test_other_trained_weights_are_refused_with_both_values(tmp_path, before, now, named):
    options = {"steps": 1, "learning_rate": 1e-3, "folder": tmp_path}
    adapter, chosen = before
    with adapter(model := tiny.llama(), **chosen):
        loop.train_(model, tiny.tokens(4, 16), next_token.loss, **options)
    with adapter(model := tiny.llama(), **chosen):
        loop.train_(model, tiny.tokens(4, 16), next_token.loss, **options)  # the same one is welcome
    assert not adapters.chosen(model)
    adapter, chosen = now
    with pytest.raises(ValueError, match=f"{named}.*same arguments"), adapter(model := tiny.llama(), **chosen):
        loop.train_(model, tiny.tokens(4, 16), next_token.loss, **options)


def test_another_way_of_healing_is_refused_by_its_name(tmp_path):
    train("full", tmp_path)
    with pytest.raises(ValueError, match="way=full there, lora here"):
        train("lora", tmp_path)
    with pytest.raises(ValueError, match="way=full there, distill here"):
        train("distill", tmp_path)


def test_weights_chosen_by_hand_are_told_apart_too(tmp_path):
    options = {"steps": 1, "learning_rate": 1e-3, "folder": tmp_path}
    for index in (0, 1):
        model = tiny.llama().requires_grad_(False)
        model.model.layers[index].requires_grad_(True)
        with contextlib.nullcontext() if index == 0 else pytest.raises(ValueError, match=r"names=.* there, .* here"):
            loop.train_(model, tiny.tokens(4, 16), next_token.loss, **options)


def test_another_text_is_refused(tmp_path):
    options = {"steps": 1, "learning_rate": 1e-3, "folder": tmp_path}
    loop.train_(tiny.llama(), tiny.tokens(4, 16), next_token.loss, **options)
    with pytest.raises(ValueError, match=r"data=.* there, .* here"):
        loop.train_(tiny.llama(), tiny.tokens(4, 16, seed=1), next_token.loss, **options)
