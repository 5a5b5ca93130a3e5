"""A reward model learns an order by its head alone or with the model, is saved whole, and refuses what isn't one."""

import copy
import math

import pytest
import torch

from lib.sources.conversations import Turn
from lib.trainers import adapters, loop, preference_rows, reward_model
from tests import tiny
from tests.test_preferences import texts


@pytest.fixture(scope="module")
def rows():
    return preference_rows.pairs(texts(), tiny.tokenizer(), length=200)


def train(model, rows, **changes):
    options = dict(steps=20, batch=6, micro_batch=3, learning_rate=3e-2, collate=preference_rows.collate)
    return loop.train_(model, rows, reward_model.Loss(), **options | changes)


def test_the_head_alone_learns_and_the_model_stays(rows):
    model = reward_model.headed_(tiny.llama(num_hidden_layers=2).requires_grad_(False))
    before = copy.deepcopy(model.state_dict())
    with reward_model.trained_(model):
        history = train(model, rows)
    assert history.losses[0] == pytest.approx(math.log(2), abs=1e-6) and history.losses[-1] < 0.3
    assert history.measures["accuracy"][-1] == 1 and history.measures["margin"][-1] > 1
    changed = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert changed == {"score.weight"} and not model.score.weight.requires_grad


def test_with_adapters_it_is_saved_whole_and_scores_the_same(rows, tmp_path):
    model = reward_model.headed_(tiny.llama(num_hidden_layers=2))
    with adapters.lora_(model, rank=4), reward_model.trained_(model):
        train(model, rows, steps=6, learning_rate=1e-2)
    answered = [reward_model.answered(each, text) for each in texts() for text in (each.chosen, each.rejected)]
    scores = reward_model.score(model, answered, tiny.tokenizer(), length=200)
    assert (scores[::2] > scores[1::2]).float().mean() > 0.8
    reward_model.save_(model, tiny.tokenizer(), tmp_path / "judge é")
    again, tokenizer = reward_model.load(tmp_path / "judge é")
    torch.testing.assert_close(reward_model.score(again, answered, tokenizer, length=200, at_once=1), scores)
    other = tmp_path / "other"
    reward_model.save_(reward_model.headed_(tiny.llama(num_hidden_layers=2, seed=1)), tokenizer, other)
    (other / reward_model.HEAD).write_bytes((tmp_path / "judge é" / reward_model.HEAD).read_bytes())
    with pytest.raises(ValueError, match="holds the head of another model"):
        reward_model.load(other)
    (other / reward_model.HEAD).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no score\.safetensors"):
        reward_model.load(other)


def test_an_answer_takes_the_place_of_another():
    plain, done = texts(1)[0], reward_model.answered(texts(1)[0], "one")
    assert done.turns == (*plain.turns, Turn("assistant", "one"))
    assert reward_model.answered(done, "two").turns == (*plain.turns, Turn("assistant", "two"))


def test_what_scores_nothing_is_refused(rows):
    model = tiny.llama(num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"has no head that scores; call reward_model\.headed_"):
        train(model, rows)
    reward_model.headed_(model).score.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match=r"the reward of row 0 is nan"):
        reward_model.score(model, [reward_model.answered(texts()[0], "one")], tiny.tokenizer(), length=99)
