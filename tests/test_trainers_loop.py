"""The training loop: against a loop by hand, and everything that it refuses or survives."""

import math
import os
import random
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from lib.folders import manifest
from lib.trainers import checkpoints, loop, next_token
from lib.trainers.optimizer import BETAS, AdamW
from lib.trainers.schedule import schedule, windows
from tests import tiny

LENGTH = 24
OPTIONS = {"steps": 3, "learning_rate": 1e-3, "batch": 4}


def weights(model):
    return {name: each.detach().clone() for name, each in model.named_parameters()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def by_hand(model, tokens, *, steps, learning_rate, batch, seed=0):
    """The same training written out: all windows of a batch at once, transformers' own loss, torch's own AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=BETAS, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        chosen = tokens[windows(step, batch, len(tokens), seed)]
        loss = model(input_ids=chosen, labels=chosen).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate * schedule(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_it_is_the_loop_written_out(micro_batch):
    tokens, ours, theirs = tiny.tokens(6, LENGTH), tiny.llama(), tiny.llama()
    history = loop.train_(ours, tokens, next_token.loss, **OPTIONS, micro_batch=micro_batch)
    losses = by_hand(theirs, tokens, **OPTIONS)
    assert history.losses == pytest.approx(losses, rel=1e-5)
    for name, weight in weights(theirs).items():
        assert torch.allclose(weights(ours)[name], weight, atol=2e-5), name
    assert history.tokens == 3 * 4 * LENGTH and history.learning_rates[0] == pytest.approx(1e-3)


def test_a_data_set_of_hugging_face_is_data_too():
    from datasets import Dataset

    tokens, one, other = tiny.tokens(4, LENGTH), tiny.llama(), tiny.llama()
    loop.train_(one, tokens, next_token.loss, **OPTIONS)
    loop.train_(other, Dataset.from_dict({"input_ids": tokens.tolist()}), next_token.loss, **OPTIONS)
    assert equal(weights(one), weights(other))
    with pytest.raises(ValueError, match=r"columns text; it needs input_ids"):
        loop.train_(one, Dataset.from_dict({"text": ["a"]}), next_token.loss, **OPTIONS)
    unequal = Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 2, 3, 4]]})
    assert loop.train_(one, unequal, next_token.loss, **OPTIONS | {"batch": 2}).tokens == 3 * 7
    with pytest.raises(ValueError, match=r"rows of unequal lengths.*cut the text into windows"):
        loop.tokens_of(unequal, one)


def test_the_seed_decides_and_global_generators_are_left_as_found():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        model = tiny.llama()
        loop.train_(model, tiny.tokens(8, LENGTH), next_token.loss, **OPTIONS, seed=seed)
        runs.append(weights(model))
    assert equal(runs[0], runs[1]) and not equal(runs[0], runs[2])
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_modes_gradients_and_configuration_are_put_back():
    model = tiny.llama()
    model.model.layers[1].train()
    before = model.config.to_dict()
    loop.train_(model, tiny.tokens(4, LENGTH), next_token.loss, **OPTIONS)
    assert [block.training for block in model.model.layers] == [False, True, False, False] and not model.training
    assert all(each.grad is None for each in model.parameters())
    assert model.config.to_dict() == before and model.config.use_cache  # else it would be saved without


class Breaks:
    """A loss that turns into NaN at one step, or whose gradient does."""

    def __init__(self, step, gradient=False):
        self.identity = {"loss": "breaks"}
        self.left, self.gradient = step, gradient

    def __call__(self, model, batch):
        self.left -= 1
        found = next_token.loss(model, batch)
        if self.left:
            return found
        return torch.where(torch.tensor(True), found, torch.sqrt(found - found)) if self.gradient else found * math.nan


@pytest.mark.parametrize("gradient", [False, True])
def test_nan_stops_and_the_last_good_state_is_kept(tmp_path, gradient):
    tokens, options = tiny.tokens(8, LENGTH), {**OPTIONS, "batch": 2, "micro_batch": 2, "steps": 8}
    what = "gradient's norm is nan" if gradient else "loss is nan"
    without, before = tiny.llama(), weights(tiny.llama())
    with pytest.raises(ValueError, match=rf"{what} at step 5 of 8; .* the weights that it came with: .* below 0.001"):
        loop.train_(without, tokens, Breaks(5, gradient), **options)
    assert equal(weights(without), before)
    model = tiny.llama()
    with pytest.raises(ValueError, match=rf"{what} at step 5 of 8; .* the weights of checkpoint-3"):
        loop.train_(model, tokens, Breaks(5, gradient), **options, folder=tmp_path, every=0)
    # the weights of step 4 led to NaN; those of step 3 are known to be good
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-3"]
    good = checkpoints.read(tmp_path / "checkpoint-3")[0]
    assert all(torch.equal(each, good[f"{name}:value"]) for name, each in weights(model).items())
    assert not equal(weights(model), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 9}, r"the healing text has 8 windows of 24 tokens and a batch takes 9; .* longer text"),
        ({"steps": None}, r"steps=None and tokens=None; exactly one"),
        ({"tokens": 100}, r"steps=3 and tokens=100; exactly one"),
        ({"steps": None, "tokens": 95}, r"steps=0 from tokens=95; 1 or more .* a step takes 96 tokens"),
        ({"steps": 0}, r"steps=0; 1 or more"),
        ({"batch": 0}, r"batch=0, micro_batch=1"),
        ({"micro_batch": 3}, r"batch=4, micro_batch=3.*a divisor"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 .* positive rate"),
    ],
)
def test_impossible_trainings_are_refused_before_the_work(change, message):
    model = tiny.llama()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        loop.train_(model, tiny.tokens(8, LENGTH), next_token.loss, **OPTIONS | change)
    assert equal(weights(model), before)


def test_a_model_at_rest_is_refused():
    with pytest.raises(ValueError, match=r"no weight of the model requires a gradient"):
        loop.train_(tiny.llama().requires_grad_(False), tiny.tokens(8, LENGTH), next_token.loss, **OPTIONS)


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_the_work(tmp_path, monkeypatch):
    model = tiny.llama()
    needed = 2 * 12 * sum(each.numel() for each in model.parameters())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, needed))
    with pytest.raises(OSError, match=r"needs \d+ MB and its disk has \d+ MB free"):
        loop.train_(model, tiny.tokens(8, LENGTH), next_token.loss, **OPTIONS, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_steps_too_small_for_bfloat16_add_up():
    weight = torch.nn.Parameter(torch.full((8,), 1.0, dtype=torch.bfloat16))
    optimizer = AdamW({"w": weight}, learning_rate=1e-3)
    for _ in range(20):  # Adam takes steps of the learning rate here, a quarter of the distance to the next number
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert optimizer.copies["w"][0].item() == pytest.approx(0.98, abs=1e-4)
    assert weight[0].item() == torch.tensor(0.98).bfloat16().item()
    assert 1 - torch.tensor(1.0).bfloat16().sub_(1e-3).item() == 0  # without the copies nothing would ever move


def test_the_optimizer_continues_from_its_tensors():
    gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    ends = []
    for stop in (None, 3):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = AdamW({"w": weight}, learning_rate=0.1)
        for step, gradient in enumerate(gradients):
            if step == stop:
                kept = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
                weight = torch.nn.Parameter(torch.zeros(5))
                optimizer = AdamW({"w": weight}, learning_rate=0.1)
                optimizer.restore(kept)
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)
    assert set(optimizer.tensors()) == {"w:value", "w:exp_avg", "w:exp_avg_sq", "w:step"}


def test_watchers_see_every_step():
    seen = []
    history = loop.train_(
        tiny.llama(), tiny.tokens(4, LENGTH), next_token.loss, **OPTIONS, on_step=lambda *args: seen.append(args)
    )
    assert seen == list(enumerate(history.losses, 1)) and len(history.seconds) == 3


@pytest.mark.parametrize("number", [1, 500])
def test_checkpoints_of_another_program_are_neither_read_nor_removed(tmp_path, number):
    """The Trainer of Hugging Face, whose checkpoints have the same names, may have trained in the folder before."""
    theirs = tmp_path / f"checkpoint-{number}"
    tiny.save(theirs)
    (theirs / "trainer_state.json").write_text("{}")
    before = {path: path.read_bytes() for path in sorted(theirs.iterdir())}
    model = tiny.llama()
    with pytest.raises(
        ValueError, match=rf"checkpoints of another program: checkpoint-{number} \(chat_template\.jinja"
    ):
        loop.train_(model, tiny.tokens(6, LENGTH), next_token.loss, **OPTIONS, folder=tmp_path, every=0)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    assert not checkpoints.checkpoints(tmp_path)


def test_what_a_kill_left_of_a_checkpoint_goes(tmp_path):
    killed, other, empty = (
        tmp_path / name for name in (".checkpoint-7.0123abcd.tmp", ".checkpoint-x.tmp", "checkpoint-1")
    )
    for path in (killed, other, empty):
        path.mkdir()
    (killed / manifest.UNFINISHED).touch()
    (killed / checkpoints.TENSORS).touch()
    (other / "notes").touch()
    for path in (killed, other):
        os.utime(path, (0, 0))
    loop.train_(tiny.llama(), tiny.tokens(6, LENGTH), next_token.loss, **OPTIONS, folder=tmp_path, every=0)
    assert not killed.exists() and not empty.exists() and (other / "notes").exists()
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-3"]
