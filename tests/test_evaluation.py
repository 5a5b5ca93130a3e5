"""Evaluating a task: scores, resuming, limits, and what is known before and after a run."""

import math

import numpy as np
import pytest

from lib.evaluation import estimate, run, scores
from lib.evaluation.local import Local
from lib.tasks.task import Outcome, Sample, Task
from tests import questions, tiny


class Counting:
    """An engine that counts what it is asked, and is killed after `most` answers."""

    def __init__(self, engine, most=math.inf):
        self.engine, self.most, self.asked, self.identity = engine, most, [], engine.identity
        self.truncated = ()

    def loglikelihoods(self, requests, **options):
        return self._answer(self.engine.loglikelihoods, requests, **options)

    def generate(self, requests, **options):
        return self._answer(self.engine.generate, requests, **options)

    def _answer(self, method, requests, *, wanted, finished):
        def counted(place, answer):
            if len(self.asked) >= self.most:
                raise KeyboardInterrupt
            self.asked.append(place)
            finished(place, answer)

        return method(requests, wanted=wanted, finished=counted)


@pytest.fixture(scope="module")
def local():
    return Local(tiny.llama(), budget=60, rows=3)


def mixed(count=8):
    """A task in which every sample asks for four likelihoods and a text."""
    some = questions.task(questions.likelihoods(count)).samples
    texts = questions.generations(count)
    samples = [Sample(each.id, each.group, (*each.requests, text), place % 4) for place, (each, text) in
               enumerate(zip(some, texts))]  # fmt: skip

    def score(sample, answers):
        values = [each.logprob for each in answers[:4]]
        return {"acc": float(values.index(max(values)) == sample.target), "length": float(len(answers[4]))}

    return Task("mixed", samples, ("acc", "length"), {"acc": 0.25}, {"acc": 0.3}, {}, score)


def test_scores_and_rows(local):
    task = mixed()
    found = run.evaluate(local, task, cache=False)
    assert list(found) == ["acc", "length"]
    accuracy = np.array([row.scores["acc"] for row in found.rows])
    assert found["acc"].value == accuracy.mean() and found["acc"].n == 8
    sums = (accuracy - accuracy.mean()).reshape(4, 2).sum(1)  # four groups of two
    assert found["acc"].stderr == pytest.approx(math.sqrt(4 / 3 * (sums**2).sum()) / 8)
    assert found["acc"].baseline == 0.3 and found["acc"].unit == "share" and found["length"].unit == "points"
    assert found.intervals["acc"].low <= found["acc"].value <= found.intervals["acc"].high
    assert [row.id for row in found.rows] == [sample.id for sample in task.samples]
    assert found.table()["acc"].tolist() == accuracy.tolist()
    assert (found.asked, found.truncated, found.empty) == (8, 0, sum(row.scores["length"] == 0 for row in found.rows))
    for row, sample in zip(found.rows, task.samples):
        assert row.answers[1].logprob == pytest.approx(questions.naive(local.model, sample.requests[1])[0], abs=1e-4)
        assert row.answers[4] == questions.greedy(local.model, sample.requests[4])


@pytest.mark.parametrize("most", [0, 1, 9, 33, 38])
def test_a_killed_evaluation_ends_in_the_same_numbers(local, tmp_path, most):
    task = mixed()
    whole = run.evaluate(local, task, cache=tmp_path / "whole")
    killed = Counting(local, most)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(killed, task, cache=tmp_path / "killed")
    again = Counting(local)
    resumed = run.evaluate(again, task, cache=tmp_path / "killed")
    assert resumed == whole and resumed.rows == whole.rows  # to the last bit
    assert resumed.asked == len(again.asked) / 5
    assert resumed.asked == 8 - max(0, most - 32)  # a sample counts when its text, the fifth answer, is there
    third = Counting(local)
    assert run.evaluate(third, task, cache=tmp_path / "killed") == whole and not third.asked


def test_another_model_or_task_does_not_reuse_answers(local, tmp_path):
    task = questions.task(questions.likelihoods(4))
    first = run.evaluate(local, task, cache=tmp_path)
    other = Counting(Local(tiny.llama(seed=1)))
    assert run.evaluate(other, task, cache=tmp_path).rows != first.rows and len(other.asked) == 16
    fewer = Counting(local)
    run.evaluate(fewer, task, cache=tmp_path, limit=3)
    assert len(fewer.asked) == 12


def test_numbers_that_are_no_means():
    samples = [Sample(f"s{place}", f"g{place // 2}", (questions.likelihoods(1)[0],), 0) for place in range(10)]
    task = Task(
        "t", samples, ("spread", "low"), {}, {"low": 0.5}, {"lower_is_better": ("low",)},
        lambda sample, answers: {"low": answers[0].logprob},
        {"spread": lambda pairs: max(answers[0].logprob for _, answers in pairs) * 100},
    )  # fmt: skip
    answers = {sample.id: [Outcome(place / 10, True, 1)] for place, sample in enumerate(samples)}
    found, spans, _ = scores.score(task, samples, answers)
    assert found["spread"].value == pytest.approx(90) and found["spread"].stderr > 0
    assert spans["spread"].low < 90 <= spans["spread"].high + 1e-9
    assert found["low"].higher_is_better is False and found["low"].baseline == 0.5
    alone, _, _ = scores.score(task, samples[:1], answers)
    assert alone["low"].stderr is None and alone["spread"].stderr is None


def test_estimates(local):
    task = mixed()
    found = estimate.before(local, task)
    prompts = [request for sample in task.samples for request in sample.requests]
    assert found.samples == 8 and found.generated == sum(request.max_new_tokens for request in prompts[4::5])
    longest = max(
        len(request.context) + len(request.continuation) for request in prompts if hasattr(request, "context")
    )
    assert longest < found.read < sum(len(sample.requests[0].context) + 20 for sample in task.samples)
    assert found.seconds > 0 and "8 samples" in str(found) and "at most" in str(found)
    assert estimate.before(Counting(local), task).seconds is None
    more = estimate.before(local, mixed(16))
    assert more.detectable < found.detectable
    assert found.detectable == pytest.approx(2.80158 * math.sqrt(0.2 / 8), rel=1e-4)


def test_refusals(local):
    task = questions.task(questions.likelihoods(2))
    with pytest.raises(ValueError, match="limit=0"):
        run.evaluate(local, task, limit=0)
    twice = Task("t", task.samples[:1] * 2, ("acc",), {}, {}, {}, task.score)
    with pytest.raises(ValueError, match="'s0' of t has the id of another sample"):
        run.evaluate(local, twice)
    silent = Task("t", [Sample("s", "g", (), 0)], ("acc",), {}, {}, {}, task.score)
    with pytest.raises(ValueError, match="'s' of t has no requests"):
        run.evaluate(local, silent)
    with pytest.raises(ValueError, match="has no samples"):
        run.evaluate(local, Task("t", [], ("acc",), {}, {}, {}, task.score))


def test_the_harness_beside():
    pytest.importorskip("lm_eval")
    from lib.evaluation import lm_eval_check

    model = tiny.llama()
    found = lm_eval_check.compare(model, questions.task(questions.likelihoods(5)))
    assert found.difference < 1e-4 and found.other_predictions == 0 and found.ratio > 0
    texts = lm_eval_check.compare(model, questions.task(questions.generations(5)), limit=4)
    assert texts.other_texts == 0 and texts.samples == 4 and "0 texts differ" in str(texts)
