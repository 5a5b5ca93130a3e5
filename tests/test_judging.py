"""What is said of a tuned model: likelihoods as plain transformers has them, intervals, answers, a judge that errs."""

import copy
import math

import numpy as np
import pytest
import torch

from lib.alignment import judging, on_policy, watch
from lib.metrics.intervals import Interval
from lib.report import preference_curves, redrawn
from lib.trainers import loop, preference_rows, preference_training
from tests import tiny
from tests.test_preferences import texts, whole

TOKENIZER = tiny.tokenizer()


@pytest.fixture(scope="module")
def models():
    return tiny.llama(num_hidden_layers=1, seed=1), tiny.llama(num_hidden_layers=1)


@pytest.fixture(scope="module")
def rows(models):
    return preference_rows.pairs(texts(), TOKENIZER, length=200).towards(models[1])


def test_likelihoods_accuracy_and_bits_per_byte(models, rows):
    found = judging.likelihoods(models[0], rows)
    batch = preference_rows.collate(list(rows))
    with torch.no_grad():
        logp, tokens = (each.view(2, -1).T for each in whole(models[0], batch))
    torch.testing.assert_close(found.logp.float(), logp, atol=1e-3, rtol=1e-5)
    assert torch.equal(found.tokens, tokens)
    h = logp - judging.reference_of(rows)
    assert found.against(judging.reference_of(rows)).tolist() == (h[:, 0] > h[:, 1]).double().tolist()
    assert found.prefers.tolist() == ((logp / tokens)[:, 0] > (logp / tokens)[:, 1]).double().tolist()
    sizes = sum(len(each.chosen.encode()) for each in texts())
    score = judging.bits_per_byte(found, rows)
    assert score.value == pytest.approx(-logp[:, 0].sum().item() / math.log(2) / sizes, rel=1e-4) and score.n == 6
    same = judging.likelihoods(models[1], rows)
    assert same.against(same.logp).tolist() == [0.5] * 6
    with pytest.raises(ValueError, match="the rows have no reference"):
        judging.reference_of(preference_rows.pairs(texts(), TOKENIZER, length=200))
    cut = preference_rows.pairs(texts(), TOKENIZER, length=int(batch["attention_mask"].sum(-1).min()) - 1)
    with pytest.raises(ValueError, match="preferred answers were cut"):
        judging.bits_per_byte(judging.likelihoods(models[0], cut), cut)


def test_its_own_answers_with_their_divergence_from_the_reference(models):
    asked = on_policy.questions(texts(4), TOKENIZER, length=99)
    found = judging.answers(*models, asked, TOKENIZER, new_tokens=5)
    assert found.tokens.max() <= 5 and found.over_length.value == 1 - found.ended.mean()
    assert found.kl.n == 4 and found.kl.value == pytest.approx(found.gone.mean())
    same = judging.answers(models[0], copy.deepcopy(models[0]), asked, TOKENIZER, new_tokens=5)
    assert same.texts == found.texts and np.abs(same.gone).max() < 1e-4


def test_a_judge_who_errs_is_corrected_and_one_who_tosses_a_coin_says_nothing():
    truth = np.random.default_rng(0).random(4000) < 0.7
    right = np.random.default_rng(1).random(4000) < 0.8
    seen = np.where(right, truth, ~truth).astype(float)
    found = judging.win_rate(seen, 1 - seen, Interval(0.8, 0.01, 0.78, 0.82, 1600))
    assert found.observed.value == pytest.approx(0.62, abs=0.03)
    assert found.corrected.low < 0.7 < found.corrected.high and found.corrected.stderr > found.observed.stderr
    coin = judging.win_rate(seen, 1 - seen, Interval(0.52, 0.03, 0.46, 0.58, 280))
    assert coin.corrected is None and "no better than a coin" in str(coin)
    ties = judging.win_rate([1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 3.0, 2.0], Interval(0.9, 0.01, 0.88, 0.92, 900))
    assert ties.observed.value == 0.5 and ties.corrected.value == pytest.approx(0.5)


def test_its_own_answers_are_watched_while_it_learns_and_drawn(models, rows, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(redrawn, "display", lambda figure, display_id: shown.append(figure))
    model = copy.deepcopy(models[1])
    asked = on_policy.questions(texts(2), TOKENIZER, length=99)
    own = watch.OwnAnswers(model, models[1], asked, TOKENIZER, every=2, new_tokens=4, folder=tmp_path)
    loss, curves = preference_training.Loss("dpo"), preference_curves.Curves(4)
    monkeypatch.setattr(preference_curves, "POINTS", 1)
    options = dict(steps=4, batch=2, micro_batch=2, learning_rate=1e-2, collate=preference_rows.collate)
    loop.train_(model, rows, loss, **options, on_step=curves.of(loss, own=own))
    assert set(own.seen) == {2, 4} and own.seen[4]["tokens"] <= 4
    again = watch.OwnAnswers(model, models[1], asked, TOKENIZER, every=2, new_tokens=4, folder=tmp_path)
    assert again.seen == own.seen and again.measure(4) == own.seen[4]
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in shown[0].axes if axes.get_visible()]
    assert len(shown) == 1 and titles == [*preference_curves.PANELS]
    drawn = dict(zip(titles, shown[0].axes))
    assert list(drawn["KL, nats an answer"].lines[0].get_xdata()) == [2, 4]
    assert list(drawn["reward margin"].lines[0].get_xdata()) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="every=0 steps"):
        watch.OwnAnswers(model, models[1], asked, TOKENIZER, every=0, new_tokens=4)
