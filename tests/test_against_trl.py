"""Losses, and their gradients by every weight, equal TRL's on its own batches: pairs, single answers, rewards, RLOO.

TRL gets the reference as a model: without one it reads it from disk, which is another model than one in memory.
"""

import copy
import types

import pytest
import torch

from lib.trainers import minibatch, policy_gradient, preference_training, preferences, reward_model, token_logp
from lib.trainers.minibatch import IGNORED
from lib.trainers.preferences import Options, Pairs
from tests import tiny
from tests.test_preferences import close
from tests.test_trainers_losses import gradients

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

PAIRS = [{"prompt": "Why?" * (k + 1), "chosen": " So" * (k + 2), "rejected": " No" * (5 - k)} for k in range(4)]
SINGLES = [{"prompt": each["prompt"], "completion": each["chosen"], "label": k % 3 > 0} for k, each in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def models():
    """A model and its reference, which differ."""
    reference = tiny.llama(num_hidden_layers=2, initializer_range=0.2)
    model, generator = copy.deepcopy(reference), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.02 * torch.randn(each.shape, generator=generator))
    return model, reference


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    found = dict(output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=4, bf16=False)
    return found | dict(gradient_checkpointing=False, report_to=[], use_cpu=True)


def data(rows):
    return datasets.Dataset.from_list(rows)


def first(trainer):
    """TRL's first batch, its loss on it, and all gradients."""
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    wanted = trainer.compute_loss(trainer.model, dict(inputs))
    return inputs, wanted.item(), gradients(trainer.model, wanted)


def same(found, model, wanted, theirs):
    assert found.item() == pytest.approx(wanted, abs=1e-5)
    close(gradients(model, found), theirs)


LOSSES = {  # ours, TRL's, our options, TRL's
    "dpo": ("dpo", "sigmoid", {}, {}),
    "ipo": ("ipo", "ipo", {"per_token": True}, {}),  # TRL's takes means over tokens, the paper's does not
    "hinge": ("hinge", "hinge", {}, {}),
    "robust": ("robust", "robust", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
    "per token": ("dpo", "sigmoid_norm", {"per_token": True}, {}),
    # of a batch of one, AOT's sorting changes nothing, and leaves DPO's with label smoothing
    "smoothed": ("dpo", "aot", {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "per_device_train_batch_size": 1}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_pairs(name, models, options):
    ours, kind, own, given = LOSSES[name]
    model, reference = map(copy.deepcopy, models)
    arguments = trl.DPOConfig(loss_type=[kind], beta=0.3, **options | given)
    made = dict(args=arguments, processing_class=tiny.tokenizer(), train_dataset=data(PAIRS))
    inputs, wanted, theirs = first(trl.DPOTrainer(model, reference, **made))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"labels": labels}
    with torch.no_grad():
        batch["reference"] = token_logp.of_rows(reference, batch)[0]
    found = preference_training.Loss(ours, Options(beta=0.3, **own))(model, batch)
    same(found, model, wanted, theirs)


def test_the_papers_ipo_is_another_one_than_trls(models):
    logp = Pairs(*(torch.tensor([each]) for each in (-4.0, -9.0, -5.0, -8.0, 2.0, 3.0)))
    paper, theirs = (preferences.ipo(logp, Options(beta=0.1, per_token=each)) for each in (False, True))
    assert paper.item() == pytest.approx((1 + 1 - 5) ** 2) and theirs.item() == pytest.approx((1 / 2 + 1 / 3 - 5) ** 2)


def test_kto(models, options):
    model, reference = map(copy.deepcopy, models)
    weights = dict(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    arguments = trl.KTOConfig(**options, **weights)
    made = dict(args=arguments, processing_class=tiny.tokenizer(), train_dataset=data(SINGLES))
    inputs, wanted, theirs = first(trl.KTOTrainer(model, reference, **made))
    batch = {"desirable": torch.as_tensor(inputs["label"])}
    width = max(inputs["input_ids"].shape[1], inputs["KL_input_ids"].shape[1])
    for name, pad in (("input_ids", 0), ("attention_mask", 0), ("completion_mask", 0)):
        both = [inputs[name], inputs[f"KL_{name}"]]
        batch[name] = torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[1]), value=pad) for each in both])
    batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, IGNORED)
    with torch.no_grad():
        batch["reference"] = token_logp.of_rows(reference, batch)[0]
    loss = preference_training.Loss("kto", Options(**weights))
    same(loss(model, batch), model, wanted, theirs)


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_without_a_reference(name):
    """TRL's are experimental; ORPO's likelihood there is a mean over all tokens of a batch, the prompt's included, so
    that only the odds ratio is compared."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    own = types.SimpleNamespace(beta=2.0, simpo_gamma=0.7, label_smoothing=0.0, alpha=0.0, loss_type="simpo")
    own.accelerator = types.SimpleNamespace(device="cpu")
    w, lost = (torch.tensor(each, requires_grad=True) for each in ([-8.0, -3.0, -20.0], [-9.0, -2.0, -14.0]))
    nw, nl = torch.tensor([4.0, 2.0, 9.0]), torch.tensor([3.0, 2.0, 5.0])
    given = Pairs(w, lost, None, None, nw, nl)
    found = preferences.by_name(name).loss(given, Options(beta=2.0, margin=0.7))
    if name == "simpo":
        wanted = CPOTrainer.cpo_loss(own, w / nw, lost / nl)[0]
    else:
        wanted = -w / nw - ORPOTrainer.odds_ratio_loss(own, w / nw, lost / nl)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    for ours, theirs in zip(*(torch.autograd.grad(each.sum(), (w, lost)) for each in (found, wanted))):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("center", [None, 0.01])
def test_the_reward_models(center, options):
    from transformers import LlamaForSequenceClassification

    # were the end token's id the padding's too, transformers' classifier would look at the token before the end
    model = tiny.llama(num_hidden_layers=2, initializer_range=0.2, pad_token_id=255)
    reward_model.headed_(model).score.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    rival = LlamaForSequenceClassification(copy.deepcopy(model.config)).eval()
    rival.config.num_labels = 1
    rival.score = torch.nn.Linear(64, 1, bias=False)
    rival.num_labels = 1
    rival.model.load_state_dict(model.model.state_dict())
    rival.score.weight.data.copy_(model.score.weight)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(255)
    arguments = trl.RewardConfig(**options, center_rewards_coefficient=center, disable_dropout=True)
    made = dict(args=arguments, processing_class=tokenizer, train_dataset=data(PAIRS))
    inputs, wanted, theirs = first(trl.RewardTrainer(rival, **made))
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"labels": inputs["input_ids"]}
    with reward_model.trained_(model):
        found = reward_model.Loss(center or 0.0)(model, batch)
        assert found.item() == pytest.approx(wanted, abs=1e-5)
        close(gradients(model, found), theirs)


def test_rloo(models, options):
    """TRL draws the answers and rewards them; on these, advantages, loss and gradients are ours."""
    from trl.trainer.rloo_trainer import add_fused_lm_head

    model, reference = map(copy.deepcopy, models)
    count = lambda completions, **_: [float(len(each) % 5) for each in completions]  # noqa: E731
    more = dict(num_generations=2, max_completion_length=6, beta=0.0, disable_dropout=True)
    arguments = trl.RLOOConfig(**options, **more)
    made = dict(args=arguments, processing_class=tiny.tokenizer(), train_dataset=data(PAIRS))
    trainer = trl.RLOOTrainer(model, count, **made)
    trainer.beta, trainer.ref_model = 0.3, copy.deepcopy(reference)  # with a beta from the start it is read from disk
    add_fused_lm_head(trainer.ref_model, temperature=1.0)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    inputs["old_logps"] = inputs["old_logps"] + torch.tensor([0.0, 0.5, -0.5, 0.1])  # as after some updates
    wanted = trainer._compute_loss(trainer.model, inputs)
    theirs = gradients(trainer.model, wanted)

    ids, mask = (
        torch.cat([inputs[f"{part}_{name}"] for part in ("prompt", "completion")], 1) for name in ("ids", "mask")
    )
    learned = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
    rows = [{"input_ids": a[b.bool()], "labels": a.masked_fill(c == 0, IGNORED)[b.bool()]}
            for a, b, c in zip(ids, mask, learned)]  # fmt: skip
    batch = minibatch.collate(rows)
    logp = token_logp.of_rows(model, batch)[0]
    with torch.no_grad():
        gone = logp - token_logp.of_rows(reference, batch)[0]
    texts = trainer._tokenizer.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    advantage = policy_gradient.advantages(torch.tensor(count(texts)) - 0.3 * gone, 2)
    torch.testing.assert_close(advantage, inputs["advantages"], atol=1e-4, rtol=0)
    found = policy_gradient.rloo(logp, inputs["old_logps"], inputs["advantages"]).mean()
    same(found, model, wanted.item(), theirs)
