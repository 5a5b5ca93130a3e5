"""Preference losses against TRL and formulas in float64, optima in closed form, training, and what is refused."""

import copy
import math

import pytest
import torch

from lib.sources import conversations
from lib.sources.conversations import Conversation, Turn
from lib.trainers import loop, preference_rows, preference_training, preferences, token_logp
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
    return preference_rows.pairs(texts(), tiny.tokenizer(), length=200)


def whole(model, batch):
    """Sums of log-probabilities, and counts, by plain autograd."""
    labels = batch["labels"][:, 1:]
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logp = model(**given, use_cache=False).logits[:, :-1].log_softmax(-1)
    each = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
    return each.sum(-1), (labels != IGNORED).sum(-1)


def entropy(model, batch):
    """Nats a token of the answers, by the formula."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    each = torch.distributions.Categorical(logits=model(**given, use_cache=False).logits[:, :-1]).entropy()
    return each[batch["labels"][:, 1:] != IGNORED].mean().item()


def close(ours, theirs):
    assert ours.keys() == theirs.keys()
    largest = max(each.abs().max() for each in theirs.values())
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 * largest for name in theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_log_probabilities_of_answers_and_all_their_gradients(tied, rows, monkeypatch):
    monkeypatch.setattr("lib.models.logits.CHUNK_BYTES", 4 * 256 * 7)  # several chunks, the last one shorter
    model = tiny.llama(num_hidden_layers=2, tie_word_embeddings=tied).double()
    batch = preference_rows.collate(list(rows.rows[:3]))
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
    "robust": (
        {"label_smoothing": 0.2},
        lambda w, o, rw, rl, nw, nl: (
            (-0.8 * σ(0.1 * (w - rw - o + rl)).log() + 0.2 * σ(-0.1 * (w - rw - o + rl)).log()) / 0.6
        ),
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
    batch = preference_rows.collate(list(rows.towards(reference).rows))
    loss = preference_training.Loss(name.split()[0], Options(**options))
    found = loss(model, batch)
    with torch.no_grad():
        rw, rl = whole(reference, batch)[0].chunk(2)
    (w, o), (nw, nl) = (each.chunk(2) for each in whole(model, batch))
    wanted = formula(w, o, rw, rl, nw, nl).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    close(gradients(model, found), gradients(model, wanted))
    told = loss.measures.told()
    assert told["tokens"] == pytest.approx(torch.cat([nw, nl]).float().mean().item())
    assert told["chosen"] == pytest.approx((w - rw).mean().item(), rel=1e-4)
    assert told["rejected"] == pytest.approx((o - rl).mean().item(), rel=1e-4)
    assert told["entropy"] == pytest.approx(entropy(model, batch), rel=1e-4) and not loss.measures.told()


def single_rows():
    conversations = [
        Conversation((*each.turns, Turn("assistant", each.chosen)), each.where, desirable=place % 3 > 0)
        for place, each in enumerate(texts())
    ]
    return preference_rows.singles(conversations, tiny.tokenizer(), length=200)


def test_kto_is_its_formula_with_all_gradients(models):
    model, reference = (copy.deepcopy(each).double() for each in models)
    batch = preference_rows.collate(list(single_rows().towards(reference).rows))
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
    batch = preference_rows.collate(list(data.towards(models[1]).rows))
    assert preference_training.Loss(name)(models[1], batch).item() == pytest.approx(FIRST[name], rel=1e-5)


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_training_prefers_what_is_preferred(name, models, rows):
    model = copy.deepcopy(models[1])
    data = (single_rows() if name == "kto" else rows).towards(models[1])
    loss = preference_training.Loss(name)
    options = dict(steps=12, batch=6, micro_batch=3, learning_rate=3e-3, collate=preference_rows.collate)
    history = loop.train_(model, data, loss, **options)
    assert history.losses[-1] < history.losses[0]
    assert all(len(each) == 12 for each in history.measures.values()) and history.measures["entropy"][0] > 0
    if name == "dpo":
        margins = history.measures["margin"]
        assert margins[0] == pytest.approx(0, abs=1e-5) and margins[-1] > 0.05
        assert history.measures["accuracy"][-1] == 1


def test_what_cannot_be_learned_from_is_refused(models, rows):
    tokenizer = tiny.tokenizer()
    with pytest.raises(ValueError, match="compares with a reference"):
        preference_training.Loss("dpo")(models[0], preference_rows.collate(list(rows.rows)))
    with pytest.raises(ValueError, match="one row in a forward pass"):
        batch = preference_rows.collate(list(single_rows().towards(models[1]).rows[:1]))
        preference_training.Loss("kto")(models[0], batch)
    alike = [Conversation((Turn("user", "a"), Turn("assistant", "b")), "row 1", desirable=True)] * 3
    with pytest.raises(ValueError, match="3 desirable and 0 undesirable"):
        preference_rows.singles(alike, tokenizer, length=99)
    with pytest.raises(ValueError, match="row 1 has no two answers"):
        preference_rows.pairs(alike, tokenizer, length=99)
    with pytest.raises(ValueError, match=r"none of 6 rows .*within 5 tokens.* \(6 cut, 6 dropped\)"):
        preference_rows.pairs(texts(), tokenizer, length=5)
    with pytest.raises(ValueError, match="'dpos' is unknown"):
        preference_training.Loss("dpos")
    for wrong in (dict(beta=0), dict(label_smoothing=0.5), dict(margin=-1)):
        with pytest.raises(ValueError, match="usual"):
            Options(**wrong)
    assert rows.towards(models[0]).identity != rows.towards(models[1]).identity


def test_pairs_that_differ_behind_the_cut_alone_are_left_out_and_counted(capsys):
    turns = (Turn("user", "Why?"),)
    alike = Conversation(turns, "row 1", chosen="a" * 40 + "b", rejected="a" * 40 + "c")
    other = Conversation(turns, "row 2", chosen="Because", rejected="No")
    found = preference_rows.pairs([alike, other], tiny.tokenizer(), length=40)
    assert found.where == ("row 2",) and found.counts == {"cut": 1, "alike": 1}
    assert "1 of 2 rows; 1 cut, 1 alike" in capsys.readouterr().out
    assert found[0]["bytes"] == [7, 2]
    with pytest.raises(ValueError, match=r"none of 1 rows .* differ \(1 cut, 1 alike\)"):
        preference_rows.pairs([alike], tiny.tokenizer(), length=40)


WRONG = {  # what no preference is, as a file's row, and what is said
    "an answer preferred to itself": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "prefers an answer to itself"),
    "an empty answer": ({"prompt": "a", "chosen": " ", "rejected": "b"}, "has an empty turn of the chosen"),
    "roles out of order": (
        {"prompt": [{"role": "user", "content": "a"}] * 2, "chosen": "b", "rejected": "c"},
        "has turns of user, user; user and assistant must take turns",
    ),
    "one answer": ({"prompt": "a", "chosen": "b"}, r"the keys \['chosen', 'prompt'\].*the nearest is"),
    "a label that is none": ({"prompt": "a", "completion": "b", "label": "good"}, "has label='good'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_are_no_preference_are_named(name):
    row, said = WRONG[name]
    with pytest.raises(ValueError, match=f"the data row 1 .*{said}"):
        conversations.read([row])


def test_a_tokenizer_without_template_and_a_reference_of_nan_are_refused(models, rows):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    for make in (preference_rows.pairs, preference_rows.singles):
        with pytest.raises(ValueError, match="no chat template"):
            make(texts(), tokenizer, length=99)
    broken = copy.deepcopy(models[1])
    broken.lm_head.weight.data[5] = math.nan
    with pytest.raises(ValueError, match=r"the answers of row 0 the log-probabilities .*nan"):
        rows.towards(broken)


def test_a_loss_of_nan_ends_the_training_with_the_weights_as_they_were(models, rows):
    model = copy.deepcopy(models[1])
    data = rows.towards(models[1])
    data.rows[3]["reference"][0] = math.nan
    before = {name: each.clone() for name, each in model.state_dict().items()}
    options = dict(steps=4, batch=3, micro_batch=3, learning_rate=1e-3, collate=preference_rows.collate)
    with pytest.raises(ValueError, match="the loss is nan at step"):
        loop.train_(model, data, preference_training.Loss("dpo"), **options)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_the_references_answers_are_kept_read_again_and_known(models, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(preference_rows, "PART", 4)
    folder, asked = tmp_path / "known é", []
    whole = rows.towards(models[1])
    of_rows = token_logp.of_rows

    def counted(model, batch):
        asked.append(1)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return of_rows(model, batch)

    monkeypatch.setattr(token_logp, "of_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        rows.towards(models[1], folder)
    found = rows.towards(models[1], folder)
    assert len(asked) == 6 + 2  # the part that was there is not asked again
    assert found.identity == whole.identity
    assert all(torch.equal(a["reference"], b["reference"]) for a, b in zip(found, whole))
    rows.towards(models[1], folder)
    assert len(asked) == 8
    with pytest.raises(ValueError, match=r"holds another job .reference=.* there, .* here"):
        rows.towards(models[0], folder)
    with pytest.raises(ValueError, match=r"holds another job .rows="):
        rows.some([0, 1]).towards(models[1], folder)
    part = folder / "part-00001.jsonl"
    part.write_text(part.read_text()[:-3])
    with pytest.raises(ValueError, match=r"part-00001.jsonl is cut short or was changed"):
        rows.towards(models[1], folder)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(OSError, match="its disk has 0 MB free"):
        rows.towards(models[1], tmp_path / "full")


def test_pairs_become_single_answers_of_both_kinds():
    found = preference_rows.split(texts(2))
    assert [each.desirable for each in found] == [True, False] * 2
    assert found[1].turns[-1] == Turn("assistant", "No no no no no no") and found[1].where == "row 0, rejected"
