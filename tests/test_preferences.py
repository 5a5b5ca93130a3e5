"""Preference losses against TRL and formulas in float64, optima in closed form, training, and what is refused."""

import copy
import math

import pytest
import torch

from lib.sources.conversations import Conversation, Turn
from lib.trainers import loop, preference_training, preferences, token_logp
from lib.trainers.minibatch import IGNORED
from lib.trainers.preferences import Options
from tests import tiny
from tests.test_trainers_losses import gradients


def texts(count=6):
    """Preferences between answers of unequal lengths."""
    asked = [(Turn("user", "Why " + "so " * place + "?"),) for place in range(count)]
    return [
        Conversation(turns, f"row {place}", chosen="Because" + "!" * place, rejected="No" + " no" * (5 - place))
        for place, turns in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def models():
    """A model and its reference, which differ."""
    reference = tiny.llama(num_hidden_layers=2, initializer_range=0.2)
    model = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.02 * torch.randn(each.shape, generator=generator))
    return model, reference


@pytest.fixture(scope="module")
def rows():
    return preference_training.pairs(texts(), tiny.tokenizer(), length=200)


def whole(model, batch):
    """Sums of log-probabilities, and counts, by plain autograd."""
    labels = batch["labels"][:, 1:]
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logp = model(**given, use_cache=False).logits[:, :-1].log_softmax(-1)
    each = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
    return each.sum(-1), (labels != IGNORED).sum(-1)


def close(ours, theirs):
    assert ours.keys() == theirs.keys()
    largest = max(each.abs().max() for each in theirs.values())
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 * largest for name in theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_log_probabilities_of_answers_and_all_their_gradients(tied, rows, monkeypatch):
    monkeypatch.setattr("lib.models.logits.CHUNK_BYTES", 4 * 256 * 7)  # several chunks, the last one shorter
    model = tiny.llama(num_hidden_layers=2, tie_word_embeddings=tied).double()
    batch = preference_training.collate(list(rows.rows[:3]))
    found, counts = token_logp.of_rows(model, batch)
    wanted, tokens = whole(model, batch)
    torch.testing.assert_close(found, wanted.float())
    assert torch.equal(counts, tokens)
    weights = torch.arange(1.0, 7.0)
    close(gradients(model, (found * weights).sum()), gradients(model, (wanted * weights).sum()))


σ = torch.sigmoid
FORMULAS = {  # of (w, o: of the preferred and the other answer, rw, rl: sums by model and reference, nw, nl: tokens)
    "dpo": ({}, lambda w, o, rw, rl, nw, nl: -σ(0.1 * ((w - rw) - (o - rl))).log()),
    "dpo smoothed": (
        {"label_smoothing": 0.2},
        lambda w, o, rw, rl, nw, nl: -0.8 * σ(0.1 * (w - rw - o + rl)).log() - 0.2 * σ(-0.1 * (w - rw - o + rl)).log(),
    ),
    "dpo per token": (
        {"per_token": True},
        lambda w, o, rw, rl, nw, nl: -σ(0.1 * ((w - rw) / nw - (o - rl) / nl)).log(),
    ),
    "ipo": ({"beta": 0.3}, lambda w, o, rw, rl, nw, nl: (w - rw - o + rl - 1 / 0.6) ** 2),
    "hinge": ({}, lambda w, o, rw, rl, nw, nl: (1 - 0.1 * (w - rw - o + rl)).clamp(min=0)),
    "simpo": ({"beta": 2.0, "margin": 0.7}, lambda w, o, rw, rl, nw, nl: -σ(2 * (w / nw - o / nl) - 0.7).log()),
    "orpo": (
        {},
        lambda w, o, rw, rl, nw, nl: -w / nw - 0.1 * σ(torch.logit((w / nw).exp()) - torch.logit((o / nl).exp())).log(),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_of_pairs_is_its_formula_with_all_gradients(name, models, rows):
    options, formula = FORMULAS[name]
    model, reference = (copy.deepcopy(each).double() for each in models)
    batch = preference_training.collate(list(rows.towards(reference).rows))
    loss = preference_training.Loss(name.split()[0], Options(**options))
    found = loss(model, batch)
    with torch.no_grad():
        rw, rl = whole(reference, batch)[0].chunk(2)
    (w, o), (nw, nl) = (each.chunk(2) for each in whole(model, batch))
    wanted = formula(w, o, rw, rl, nw, nl).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    close(gradients(model, found), gradients(model, wanted))
    assert loss.seen[0]["tokens"] == pytest.approx(torch.cat([nw, nl]).float().mean().item())


def single_rows():
    conversations = [
        Conversation((*each.turns, Turn("assistant", each.chosen)), each.where, desirable=place % 3 > 0)
        for place, each in enumerate(texts())
    ]
    return preference_training.singles(conversations, tiny.tokenizer(), length=200)


def test_kto_is_its_formula_with_all_gradients(models):
    model, reference = (copy.deepcopy(each).double() for each in models)
    batch = preference_training.collate(list(single_rows().towards(reference).rows))
    options = Options(desirable_weight=1.5, undesirable_weight=0.5)
    found = preference_training.Loss("kto", options)(model, batch)
    with torch.no_grad():
        known = whole(reference, batch)[0].chunk(2)
    own, other = whole(model, batch)[0].chunk(2)
    z = (other - known[1]).mean().detach().clamp(min=0)
    signs = torch.tensor([-1.0, 1, 1, -1, 1, 1]).double()
    wanted = (torch.where(signs > 0, 1.5, 0.5) * (1 - σ(0.1 * signs * (own - known[0] - z)))).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    close(gradients(model, found), gradients(model, wanted))


TRL = {
    "dpo": ("dpo", "sigmoid", {}),
    "ipo": ("ipo", "ipo", {"per_token": True}),  # TRL's takes means over tokens, the paper's does not
    "hinge": ("hinge", "hinge", {}),
    "per token": ("dpo", "sigmoid_norm", {"per_token": True}),
}


@pytest.fixture(scope="module")
def trl_batch(models, tmp_path_factory):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    pairs = [{"prompt": "Why?" * (k + 1), "chosen": " So" * (k + 2), "rejected": " No" * (5 - k)} for k in range(4)]
    model, reference = map(copy.deepcopy, models)
    tokenizer = tiny.tokenizer()
    folder = tmp_path_factory.mktemp("trl")
    options = dict(output_dir=str(folder), per_device_train_batch_size=4, bf16=False, gradient_checkpointing=False)
    options |= dict(report_to=[], use_cpu=True, beta=0.3)

    def trainer(kind):
        return trl.DPOTrainer(
            model, reference, args=trl.DPOConfig(loss_type=[kind], **options), processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(pairs),
        )  # fmt: skip

    return trainer, model, reference


@pytest.mark.parametrize("name", TRL)
def test_losses_and_gradients_are_trls(name, trl_batch):
    ours, theirs, options = TRL[name]
    make, model, reference = trl_batch
    trainer = make(theirs)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    wanted = trainer.compute_loss(trainer.model, dict(inputs))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"labels": labels}
    with torch.no_grad():
        batch["reference"] = token_logp.of_rows(reference, batch)[0]
    found = preference_training.Loss(ours, Options(beta=0.3, **options))(model, batch)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)
    close(gradients(model, found), gradients(trainer.model, wanted))


class Toy(torch.nn.Module):
    """Log-probabilities of two answers, from one logit; the reference finds both alike."""

    def __init__(self):
        super().__init__()
        self.z = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def pairs(self, first):
        logp, half = self.z.log_softmax(-1), torch.full((1,), math.log(0.5), dtype=torch.float64)
        one = torch.ones(1)
        order = (logp[:1], logp[1:]) if first else (logp[1:], logp[:1])
        return preferences.Pairs(*order, half, half, one, one)


@pytest.mark.parametrize("share", [0.7, 1.0])
@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_the_optimum_on_two_answers_in_closed_form(name, share, monkeypatch):
    """One answer is preferred in `share` of the pairs: DPO's margin is logit(share) / β, without end where it is
    always preferred; IPO's is (2 share - 1) / (2 β)."""
    toy, row, options = Toy(), preferences.by_name(name), Options(beta=0.5)
    optimizer = torch.optim.LBFGS(toy.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step():
        optimizer.zero_grad()
        loss = share * row.loss(toy.pairs(True), options) + (1 - share) * row.loss(toy.pairs(False), options)
        loss.sum().backward()
        return loss.sum()

    optimizer.step(step)
    margin = (toy.z[0] - toy.z[1]).item()
    if name == "ipo":
        assert margin == pytest.approx((2 * share - 1) / (2 * 0.5), abs=1e-4)
    elif share < 1:
        assert margin == pytest.approx(math.log(share / (1 - share)) / 0.5, abs=1e-3)
    else:
        assert margin > 15  # it runs away


FIRST = {"dpo": math.log(2), "ipo": 25.0, "hinge": 1.0, "kto": 0.5}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_loss_of_a_model_that_is_its_reference(name, models, rows):
    data = single_rows() if name == "kto" else rows
    batch = preference_training.collate(list(data.towards(models[1]).rows))
    assert preference_training.Loss(name)(models[1], batch).item() == pytest.approx(FIRST[name], rel=1e-5)


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_training_prefers_what_is_preferred(name, models, rows):
    model = copy.deepcopy(models[1])
    data = (single_rows() if name == "kto" else rows).towards(models[1])
    loss = preference_training.Loss(name)
    options = dict(steps=12, batch=6, micro_batch=3, learning_rate=3e-3, collate=preference_training.collate)
    history = loop.train_(model, data, loss, **options)
    assert history.losses[-1] < history.losses[0]
    if name == "dpo":
        assert loss.seen[0]["margin"] == pytest.approx(0, abs=1e-5) and loss.seen[-1]["margin"] > 0.05
        assert loss.seen[-1]["accuracy"] == 1


def test_what_cannot_be_learned_from_is_refused(models, rows):
    tokenizer = tiny.tokenizer()
    with pytest.raises(ValueError, match="compares with a reference"):
        preference_training.Loss("dpo")(models[0], preference_training.collate(list(rows.rows)))
    with pytest.raises(ValueError, match="one row in a forward pass"):
        batch = preference_training.collate(list(single_rows().towards(models[1]).rows[:1]))
        preference_training.Loss("kto")(models[0], batch)
    alike = [Conversation((Turn("user", "a"), Turn("assistant", "b")), "row 1", desirable=True)] * 3
    with pytest.raises(ValueError, match="3 desirable and 0 undesirable"):
        preference_training.singles(alike, tokenizer, length=99)
    with pytest.raises(ValueError, match="row 1 has no two answers"):
        preference_training.pairs(alike, tokenizer, length=99)
    with pytest.raises(ValueError, match="none of 6 rows"):
        preference_training.pairs(texts(), tokenizer, length=5)
    with pytest.raises(ValueError, match="'dpos' is unknown"):
        preference_training.Loss("dpos")
    for wrong in (dict(beta=0), dict(label_smoothing=0.5), dict(margin=-1)):
        with pytest.raises(ValueError, match="usual"):
            Options(**wrong)
    assert rows.towards(models[0]).identity != rows.towards(models[1]).identity
