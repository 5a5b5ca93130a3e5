"""Evaluations side by side: made by hand, so that every number is known."""

import math

import pytest

from lib.evaluation import comparison
from lib.evaluation.scores import Evaluation, score
from lib.tasks.task import Generation, Likelihood, Outcome, Sample, Task


def right(sample, answers):
    """acc of a choice: the most probable answer is the target's."""
    best = max(range(len(answers)), key=lambda place: answers[place].logprob)
    return {"acc": float(best == sample.target["answer"])}


def choices(count, **fields):
    """A task of `count` questions with the answers A to C, of which A is right."""
    samples = [
        Sample(f"q{i}", f"q{i}", tuple(Likelihood(f"Question {i}:", f" {letter}") for letter in "ABC"), {"answer": 0})
        for i in range(count)
    ]
    given = dict(chance={"acc": 1 / 3}, constant={"acc": 0.4}, data={"sha256": "d", "lower_is_better": ()}, score=right)
    return Task(**{**dict(name="choices", samples=samples, metrics=("acc",)), **given, **fields})


def evaluated(task, answers):
    """The evaluation of answers, one list a sample."""
    by_id = {sample.id: given for sample, given in zip(task.samples, answers)}
    found, spans, rows = score(task, task.samples, by_id)
    fields = dict(data=task.data, rows=rows, intervals=spans, chance=task.chance, constant=task.constant, requests="r")
    made = Evaluation(task.name, **fields)
    made.update(found)
    return made


def outcomes(*logprobs):
    return [Outcome(logprob, False, 1) for logprob in logprobs]


RIGHT, WRONG, CLOSE = outcomes(-1.0, -3.0, -4.0), outcomes(-2.0, -1.5, -9.0), outcomes(-1.0, -1.1, -5.0)


def test_each_arm_is_compared_with_the_first():
    task = choices(60)
    arms = {
        "original": evaluated(task, [RIGHT] * 40 + [WRONG] * 20),
        "8 bits": evaluated(task, [RIGHT] * 39 + [WRONG] * 21),
        "2 bits": evaluated(task, [RIGHT] * 10 + [WRONG] * 50),
    }
    found = comparison.against(arms)
    assert list(found) == ["8 bits", "2 bits"]
    near, far = found["8 bits"], found["2 bits"]
    assert not near.comparison.seen and far.comparison.seen and far.comparison.lost == 30
    assert near.retention.value == pytest.approx((39 / 60 - 1 / 3) / (40 / 60 - 1 / 3)) and near.marks == ()
    assert far.marks[0].startswith("no better than the best constant answer")
    assert far.difference.value == pytest.approx(-0.5) and far.difference.baseline == 0
    assert near.retained.baseline == 1 and near.retained.value == near.retention.value


def test_nothing_is_retained_where_the_original_is_at_chance():
    task = choices(30)
    arms = {"a": evaluated(task, [RIGHT] * 10 + [WRONG] * 20), "b": evaluated(task, [RIGHT] * 9 + [WRONG] * 21)}
    found = comparison.against(arms)["b"]
    assert found.retention is None and found.retained is None


def test_what_can_not_be_compared_stops():
    task = choices(4)
    one = evaluated(task, [RIGHT] * 4)
    with pytest.raises(ValueError, match="samples of 'a' is 4"):
        comparison.against({"a": one, "b": evaluated(choices(3), [RIGHT] * 3)})
    with pytest.raises(ValueError, match="metric='f1'; acc are allowed"):
        comparison.against({"a": one, "b": one}, "f1")


def agreement(pairs):
    """A number of all samples together: the geometric mean of the probabilities of the right answers."""
    return math.exp(sum(answers[0].logprob for _, answers in pairs) / len(pairs))


def test_numbers_of_all_samples_together_are_bootstrapped_with_their_task():
    task = choices(40, metrics=("all", "acc"), aggregate={"all": agreement})
    first, second = evaluated(task, [RIGHT] * 40), evaluated(task, [RIGHT, WRONG] * 20)
    found = comparison.against({"a": first, "b": second}, "all", task)["b"].comparison
    assert found.difference == pytest.approx(math.exp(-1.5) - math.exp(-1)) and found.seen
    assert found.low < found.difference < found.high < 0 and found.test == "bootstrap"
    same = comparison.against({"a": first, "b": first}, "all", task)["b"].comparison
    assert same.p == 1 and not same.seen
    with pytest.raises(ValueError, match="give its task too"):
        comparison.against({"a": first, "b": second}, "all")


def test_flips_show_the_prompt_and_what_both_said():
    task = choices(3)
    first, second = evaluated(task, [RIGHT, WRONG, CLOSE]), evaluated(task, [RIGHT, RIGHT, WRONG])
    found = comparison.flips(task, first, second)
    assert found["id"].tolist() == ["q1", "q2"] and found["before"].tolist() == [0, 1]
    assert found["answer_before"].tolist() == ["B", "A"] and found["answer_after"].tolist() == ["A", "B"]
    assert found["prompt"][0] == "Question 1:" and comparison.flips(task, first, first).empty


def test_flips_of_written_answers_show_the_texts():
    samples = [
        Sample("s", "s", (Generation("Say yes.", (), 4),), "yes"),
        Sample("t", "t", (Generation("Say", (), 4),), ""),
    ]

    def exact(sample, texts):
        return {"match": float(texts[0] == sample.target)}

    task = choices(0, samples=samples, metrics=("match",), score=exact, chance={}, constant={})
    first, second = evaluated(task, [["yes"], ["x"]]), evaluated(task, [["no"], ["x"]])
    found = comparison.flips(task, first, second)
    assert found[["id", "prompt", "answer_before", "answer_after"]].values.tolist() == [["s", "Say yes.", "yes", "no"]]
    with pytest.raises(ValueError, match="no choice with one right answer"):
        comparison.margins(task, first)


def test_margins_are_positive_where_the_right_answer_wins():
    task = choices(3)
    assert comparison.margins(task, evaluated(task, [RIGHT, WRONG, CLOSE])).round(6).tolist() == [2.0, -0.5, 0.1]
