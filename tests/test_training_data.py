"""Rows of unequal lengths, labels, streams and collators of one's own in the training loop."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from lib.trainers import distill, loop, minibatch, next_token, top_k
from lib.trainers.optimizer import BETAS
from lib.trainers.schedule import schedule, windows
from tests import tiny

LENGTHS = (5, 19, 11, 7, 23, 13, 3, 17)
OPTIONS = {"steps": 3, "learning_rate": 1e-3, "batch": 4}


def model(seed=0):
    return tiny.llama(seed=seed, num_hidden_layers=2)


def rows():
    """Rows of unequal lengths, every other with a beginning that is not learned."""
    ids = tiny.tokens(len(LENGTHS), 32)
    found = []
    for place, length in enumerate(LENGTHS):
        row = {"input_ids": ids[place, :length].tolist()}
        if place % 2:
            row["labels"] = [-100] * 2 + row["input_ids"][2:]
        found.append(row)
    return found


def weights(trained):
    return {name: each.detach().clone() for name, each in trained.named_parameters()}


def close(one, other, atol):
    return all(torch.allclose(one[name], each, atol=atol) for name, each in other.items())


def mean_of_rows(trained, some):
    """-1/n Σ ln q over all labels of `some` rows, each run alone by plain transformers."""
    total, count = 0.0, 0
    for row in some:
        labels = torch.tensor(row.get("labels", row["input_ids"]))[1:]
        found = trained(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total = total + nn.functional.cross_entropy(found, labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


def by_hand(trained, data, order, *, steps, learning_rate, batch):
    optimizer = torch.optim.AdamW(trained.parameters(), lr=learning_rate, betas=BETAS, weight_decay=0.0)
    losses = []
    for step in range(steps):
        loss = mean_of_rows(trained, [data[place] for place in order(step)])
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate * schedule(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


class Stream:
    """Rows that come one after the other, as often as they are asked for."""

    identity = "eight rows"

    def __iter__(self):
        return iter(rows())


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_every_label_of_a_step_weighs_the_same_whatever_rows_it_stands_beside(micro_batch, stream):
    ours, theirs, data = model(), model(), rows()
    order = (lambda step: [place % 8 for place in range(4 * step, 4 * step + 4)]) if stream else None
    order = order or (lambda step: windows(step, 4, 8, 0))
    history = loop.train_(ours, Stream() if stream else data, next_token.loss, **OPTIONS, micro_batch=micro_batch)
    losses = by_hand(theirs, data, order, **OPTIONS)
    assert history.losses == pytest.approx(losses, rel=1e-5)
    assert close(weights(ours), weights(theirs), 5e-5)  # Adam makes steps of 1e-3 of any gradient
    seen = [sum(LENGTHS[place] for place in order(step)) for step in range(3)]
    assert history.tokens == sum(seen) and history.passes == (None if stream else history.tokens / sum(LENGTHS))


def test_a_padded_batch_has_the_loss_of_plain_transformers():
    trained, batch = model(), minibatch.collate(rows())
    assert batch["input_ids"].shape == (8, 23) and batch["attention_mask"].sum() == sum(LENGTHS)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    plain = trained(**batch).loss
    found = next_token.loss(trained, batch)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    assert found.item() == pytest.approx(mean_of_rows(trained, rows()).item(), rel=1e-5)
    one, other = (torch.autograd.grad(loss, list(trained.parameters())) for loss in (plain, found))
    assert all((a - b).norm() <= 1e-4 * a.norm() for a, b in zip(one, other))


def test_distillation_looks_at_the_same_positions(tmp_path):
    teacher, student, batch = model(1), model(), minibatch.collate(rows())
    p, q = (each(**batch).logits[:, :-1].log_softmax(-1) for each in (teacher, student))
    expected = (p.exp() * (p - q)).sum(-1)[batch["labels"][:, 1:] != -100].mean()
    loss = distill.Distillation(teacher)
    loss.check(student)
    assert loss(student, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    ids = tiny.tokens(2, 12)
    kept = top_k.cache_teacher(teacher, ids, k=255, folder=tmp_path)
    batch = minibatch.collate(minibatch.with_totals([(0, {"input_ids": ids[0]}), (1, {"input_ids": ids[1]})]))
    batch["labels"][1, :6] = -100
    p, q = (each(input_ids=ids).logits[:, :-1].log_softmax(-1) for each in (teacher, student))
    expected = (p.exp() * (p - q)).sum(-1)[batch["labels"][:, 1:] != -100].mean()
    assert kept(student, batch).item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("data", [rows, Stream])
def test_a_stopped_training_on_rows_ends_in_the_same_bytes(data, tmp_path):
    options = {**OPTIONS, "steps": 6, "micro_batch": 2}
    whole, again = model(), model()
    history = loop.train_(whole, data(), next_token.loss, **options)

    class Killed(BaseException):
        pass

    def kill(step, _):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        loop.train_(again, data(), next_token.loss, **options, folder=tmp_path, every=0, on_step=kill)
    again = model()
    found = loop.train_(again, data(), next_token.loss, **options, folder=tmp_path)
    assert found.losses == history.losses and found.tokens == history.tokens
    assert all(torch.equal(weights(again)[name], each) for name, each in weights(whole).items())
    if data is rows:
        changed = rows()
        changed[3]["labels"][2] = -100
        with pytest.raises(ValueError, match="data"):
            loop.train_(model(), changed, next_token.loss, **options, folder=tmp_path)


def test_constant_memory_rows_are_read_when_they_are_needed():
    read = []

    class Endless:
        def __iter__(self):
            place = 0
            while True:
                read.append(place)
                place += 1
                yield {"input_ids": [1, 2, 3, place % 250]}

    loop.train_(model(), Endless(), next_token.loss, **OPTIONS)
    assert len(read) <= 4 * (3 + 2)


PREFERENCE = '''
"""Odds-ratio preference: the chosen answer should be likelier than the rejected one, by a margin that is learned."""

import torch
from torch.nn.functional import logsigmoid

from lib.trainers import minibatch

mean_over = "rows"


def collate(rows):
    """Chosen answers first, rejected ones behind them."""
    pairs = [{"input_ids": row[side]} for side in ("chosen", "rejected") for row in rows]
    return minibatch.collate(pairs)


def log_odds(model, batch):
    given = minibatch.inputs(batch)
    found = model(**given, use_cache=False).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    each = found.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != minibatch.IGNORED)
    mean = each.sum(1) / (labels != minibatch.IGNORED).sum(1)
    return mean - torch.log1p(-mean.exp())


def loss(model, batch):
    """-ln σ(log odds of the chosen - log odds of the rejected), mean over pairs."""
    chosen, rejected = log_odds(model, batch).chunk(2)
    return -logsigmoid(chosen - rejected).mean()
'''


def test_one_file_adds_a_loss(tmp_path):
    assert PREFERENCE.count("\n") <= 60
    (tmp_path / "preference.py").write_text(PREFERENCE)
    spec = importlib.util.spec_from_file_location("preference", tmp_path / "preference.py")
    preference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(preference)
    pairs = [{"chosen": row["input_ids"], "rejected": row["input_ids"][::-1]} for row in rows()]
    trained, options = model(), {**OPTIONS, "steps": 12, "learning_rate": 3e-3}
    batch = preference.collate(pairs)
    before = preference.loss(trained, batch).item()
    history = loop.train_(trained, pairs, preference.loss, **options, micro_batch=2, collate=preference.collate)
    assert preference.loss(trained, batch).item() < 0.9 * before and len(history.losses) == 12
    again = model()
    assert loop.train_(again, pairs, preference.loss, **options, micro_batch=4, collate=preference.collate).losses[
        0
    ] == pytest.approx(history.losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        ([{"text": "a"}] * 8, {}, r"row 0 of the data has columns text; it needs input_ids"),
        ([[1, 2, 3]] * 8, {}, r"row 0 of the data has a list; it needs input_ids"),
        ([{"input_ids": [1]}] * 8, {}, r"row 0 of the data has .*; 2 or more tokens"),
        ([{"input_ids": [1, 2], "labels": [1]}] * 8, {}, r"as many labels"),
        ([{"input_ids": [1, 999]}] * 8, {}, r"token ids from 1 to 999; the model knows 0 to 255"),
        ([{"input_ids": [1, 2, 3], "labels": [-100] * 3}] * 8, {}, r"step 1 has no token to learn"),
        ([{"input_ids": [1, 2, 3]}, {"input_ids": [1, 2]}], {}, r"has 2 rows and a batch takes 4"),
        (iter([{"input_ids": [1, 2, 3]}]), {"steps": None, "tokens": 100}, r"whose length nobody knows"),
        (iter([{"input_ids": [1, 2, 3]}] * 6), {}, r"the data ended after 6 rows and begins no second time"),
        (7, {}, r"a int was given as data"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(data, change, message):
    trained = model()
    before = weights(trained)
    with pytest.raises((ValueError, TypeError), match=message):
        loop.train_(trained, data, next_token.loss, **OPTIONS | change)
    assert math.isfinite(sum(each.sum() for each in before.values()))
    if not isinstance(data, type(iter([]))):
        assert close(weights(trained), before, 0)


def test_a_stream_without_a_name_keeps_no_checkpoints_and_a_table_that_changes_no_neighbours(tmp_path):
    class Nameless:
        def __iter__(self):
            return iter(rows())

    with pytest.raises(ValueError, match=r"has no `identity`.*give folder=None"):
        loop.train_(model(), Nameless(), next_token.loss, **OPTIONS, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    changing = tiny.llama(num_hidden_layers=1, rope_parameters=rope, max_position_embeddings=16)
    with pytest.raises(ValueError, match=r"micro_batch=2 rows of unequal lengths.*give micro_batch=1"):
        loop.train_(changing, rows(), next_token.loss, **OPTIONS, micro_batch=2)
    first = mean_of_rows_alone(changing, [rows()[place] for place in windows(0, 4, 8, 0)])
    assert loop.train_(changing, rows(), next_token.loss, **OPTIONS).losses[0] == pytest.approx(first, rel=1e-5)


def mean_of_rows_alone(trained, some):
    """As `mean_of_rows`, each row on a model that has read nothing before."""
    from lib.models.eval_mode import evaluating

    with evaluating(trained):
        return mean_of_rows(trained, some).item()
