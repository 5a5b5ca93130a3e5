"""Trainings from scratch: against transformers' Trainer, against torch's optimizers, and resumed."""

import math

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from lib import architectures
from lib.trainers import checkpoints, held_out, loop, next_token, recipe, utilization
from lib.trainers.recipe import BETAS, Recipe
from lib.trainers.schedule import windows
from tests import tiny
from tests.test_architectures import SIZES

LENGTH = 24


def model_of(name="plain", seed=0):
    return architectures.build(name, SIZES | {"tie_word_embeddings": True}, seed)


def weights(model):
    return {name: each.detach().clone() for name, each in model.named_parameters()}


class Rows(torch.utils.data.Dataset):
    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, place):
        return {"input_ids": self.ids[place], "labels": self.ids[place]}


@pytest.mark.parametrize("schedule, name", [("cosine", "cosine"), ("wsd", "warmup_stable_decay")])
def test_losses_are_those_of_transformers_trainer(schedule, name, tmp_path):
    ids, ours, theirs, steps = tiny.tokens(64, LENGTH), model_of(), model_of(), 50
    options = {"schedule": schedule, "warmup": 0.1, "decay_embeddings": True, "weight_decay": 0.1}
    found = loop.train_(
        ours, ids, next_token.loss, steps=steps, learning_rate=3e-3, batch=4, seed=5, recipe=Recipe(**options)
    )
    drawn = torch.cat([ids[windows(step, 4, len(ids), 5)] for step in range(steps)])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-3, weight_decay=0.1,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=1.0, lr_scheduler_type=name, warmup_steps=5,
        lr_scheduler_kwargs={"num_decay_steps": 10} if schedule == "wsd" else {},
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model=theirs, args=arguments, train_dataset=Rows(drawn))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == len(found.losses) == steps and found.losses[-1] < found.losses[0] - 0.1
    assert found.losses == pytest.approx(losses, abs=1e-4)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert found.learning_rates == pytest.approx(rates, abs=1e-9)
    for each, weight in weights(theirs).items():
        assert torch.allclose(weights(ours)[each], weight, atol=1e-4), each


def test_muon_steps_the_matrices_of_the_blocks_and_adamw_the_rest():
    ids, ours, theirs = tiny.tokens(8, LENGTH), model_of("headwise"), model_of("headwise")
    made = Recipe(optimizer="muon", schedule="constant", warmup=0.0, weight_decay=0.2)
    found = loop.train_(ours, ids, next_token.loss, steps=3, learning_rate=1e-2, batch=8, recipe=made)
    inside = {name: each for name, each in theirs.named_parameters() if each.ndim == 2 and "embed" not in name}
    others = [each for name, each in theirs.named_parameters() if name not in inside]
    assert len(inside) == 2 * (7 + 4)
    muon = torch.optim.Muon(inside.values(), lr=1e-2, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=BETAS, weight_decay=0.0)
    theirs.train()
    for step in range(3):
        chosen = ids[windows(step, 8, len(ids), 0)]
        loss = theirs(input_ids=chosen, labels=chosen).loss
        assert found.losses[step] == pytest.approx(loss.item(), abs=1e-3)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for each in (muon, adamw):
            each.step()
            each.zero_grad()
    for name, weight in weights(theirs).items():
        assert torch.allclose(weights(ours)[name], weight, atol=2e-3), name  # Newton-Schulz computes in bfloat16


@pytest.mark.parametrize("embeddings", [False, True])
def test_what_decays(embeddings):
    model = architectures.build("plain", SIZES, 0)
    copies = {name: each.detach().clone() for name, each in model.named_parameters()}
    made = Recipe(weight_decay=0.3, decay_embeddings=embeddings).optimizers(model, copies, 1e-3)
    decays = {id(each): group["weight_decay"] for group in made[0].param_groups for each in group["params"]}
    for name, copy in copies.items():
        end = name in ("model.embed_tokens.weight", "lm_head.weight")
        expected = 0.0 if "norm" in name or (end and not embeddings) else 0.3
        assert decays[id(copy)] == expected, name


@pytest.mark.parametrize("optimizer, schedule", [("muon", "wsd"), ("adamw", "cosine")])
def test_a_stopped_training_resumes_to_the_same_bytes(optimizer, schedule, tmp_path):
    made, ids = Recipe(optimizer=optimizer, schedule=schedule), tiny.tokens(8, LENGTH)
    unseen = tiny.tokens(3, LENGTH, seed=1)
    options = {"steps": 6, "learning_rate": 1e-2, "batch": 4, "recipe": made}
    whole, parts, curves = model_of(), model_of(), []
    watch = held_out.HeldOut(whole, unseen, every=2 * 96, tokens_per_step=96)
    history = loop.train_(whole, ids, next_token.loss, **options, on_step=watch)
    for stop in (3, None):
        parts = model_of()
        seen = held_out.HeldOut(parts, unseen, every=2 * 96, tokens_per_step=96, folder=tmp_path)
        kept = {"folder": tmp_path, "every": 0, "stop": lambda done, last=stop: done == last}
        again = loop.train_(parts, ids, next_token.loss, **options, **kept, on_step=seen)
        curves.append(seen.curve())
    assert again.losses == history.losses and all(torch.equal(weights(whole)[n], w) for n, w in weights(parts).items())
    assert curves[1] == watch.curve() and [tokens for tokens, _ in curves[1]] == [192, 384, 576] and len(curves[0]) == 1
    assert curves[1][-1][1] == pytest.approx(whole(unseen, labels=unseen).loss.item(), abs=1e-5)
    for change, said in (
        ({"recipe": Recipe(optimizer=optimizer, schedule="constant")}, f"recipe_schedule={schedule} there, constant"),
        ({"seed": 3}, "seed=0 there, 3 here"),
        ({"learning_rate": 2e-2}, "learning_rate=0.01 there, 0.02 here"),
    ):
        with pytest.raises(ValueError, match=said):
            loop.train_(model_of(), ids, next_token.loss, **options | change, folder=tmp_path)
    with pytest.raises(ValueError, match="architecture=LlamaForCausalLM there, HeadwiseForCausalLM here"):
        loop.train_(model_of("headwise"), ids, next_token.loss, **options, folder=tmp_path)
    with pytest.raises(ValueError, match=r"data=.* there, .* here"):
        loop.train_(model_of(), tiny.tokens(8, LENGTH, seed=9), next_token.loss, **options, folder=tmp_path)
    assert len(checkpoints.checkpoints(tmp_path)) == 1


def test_bfloat16_keeps_float32_weights():
    ids, options = tiny.tokens(8, LENGTH), {"steps": 8, "learning_rate": 1e-2, "batch": 8}
    found = {}
    for half in (False, True):
        model = model_of("headwise")
        history = loop.train_(model, ids, next_token.loss, **options, recipe=Recipe(bfloat16=half))
        assert {each.dtype for each in model.parameters()} == {torch.float32}
        found[half] = history.losses
    assert found[True] != found[False] and found[True] == pytest.approx(found[False], abs=0.05)
    assert found[True][-1] < found[True][0] - 0.2


def test_gradient_checkpointing_changes_no_loss_and_is_undone():
    ids, options = tiny.tokens(8, LENGTH), {"steps": 2, "learning_rate": 1e-2, "batch": 4, "micro_batch": 2}
    losses, counts = {}, {}
    for again in (False, True):
        model, calls = model_of("head_gate"), []
        for block in model.model.layers:
            block.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        history = loop.train_(model, ids, next_token.loss, **options, recipe=Recipe(gradient_checkpointing=again))
        losses[again], counts[again] = history.losses, len(calls)
        assert not model.is_gradient_checkpointing and model.config.use_cache
    assert losses[True] == pytest.approx(losses[False], abs=1e-6)
    assert counts[True] == counts[False] + 2 * 2 * 2  # each block of each pass runs forward once more


def test_what_is_compiled_computes_the_loss_and_is_undone(monkeypatch):
    """What `torch.compile`, which takes ten seconds to import, is asked; and that its answer is used."""
    asked, calls = [], []

    def compile(function, **options):
        asked.append(options)
        return lambda *args, **more: (calls.append(1), function(*args, **more))[1]

    monkeypatch.setattr(torch, "compile", compile)
    ids, options = tiny.tokens(8, LENGTH), {"steps": 2, "learning_rate": 1e-2, "batch": 4, "micro_batch": 2}
    model = model_of()
    loop.train_(model, ids, next_token.loss, **options, recipe=Recipe(compile="inductor"))
    assert [each["backend"] for each in asked] == ["inductor"] and len(calls) == 2 * 2, asked  # passes, nothing else
    assert model.model._compiled_call_impl is None and model.config.use_cache
    loop.train_(model, ids, next_token.loss, **options)
    assert len(calls) == 4


def test_speed_is_that_of_the_median_step_and_mfu_its_share_of_the_peak():
    model, steps = model_of(), [3.0, 3.5, 4.0, 4.5, 6.0]
    history = loop.History([1.0] * 5, steps, [0.1] * 5, 96, 960)
    assert utilization.tokens_per_second(history) == pytest.approx(96 / 0.5)
    assert utilization.start_up(history) == pytest.approx(2.5)
    flops = 6 * sum(each.numel() for name, each in model.named_parameters() if each.ndim == 2) + 6 * 2 * 2 * 64 * 12
    assert utilization.mfu(history, model, LENGTH, 1e9) == pytest.approx(flops * 192 / 1e9)
    assert utilization.mfu(history, model, LENGTH, None) is None


def test_bits_per_byte_of_the_unseen_part():
    model, unseen = model_of(), tiny.tokens(3, LENGTH, seed=1) % 100 + 20
    seen = held_out.HeldOut(model, unseen, every=96, tokens_per_step=96)
    loss = seen.measure(0)
    assert seen.bits_per_byte(tiny.tokenizer()) == [(0, pytest.approx(loss / math.log(2)))]  # one token a byte
    frequent = held_out.without_context(np.array([3, 3, 3, 1]), torch.tensor([[0, 3, 1]]), 4)
    assert frequent == pytest.approx(-(math.log(4 / 8) + math.log(2 / 8)) / 2)
    assert held_out.overlap(unseen, unseen[1:]) == 2 and held_out.overlap(unseen, tiny.tokens(2, LENGTH)) == 0


@pytest.mark.parametrize(
    "options, said",
    [
        ({"optimizer": "adam"}, "optimizer='adam'; choose one of adamw, muon; did you mean 'adamw'"),
        ({"schedule": "linear"}, "schedule='linear'; choose one of"),
        ({"weight_decay": -1}, "weight_decay=-1; numbers from 0"),
        ({"warmup": 0.9, "cooldown": 0.2}, "warmup=0.9 and cooldown=0.2; both are shares"),
        ({"warm_up": 0.1}, "'warm_up' is no option of a recipe; .*'warmup'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        recipe.of(options)
    with pytest.raises(ValueError, match="every=10 tokens with 96 of them a step"):
        held_out.HeldOut(model_of(), tiny.tokens(2, 8), every=10, tokens_per_step=96)
