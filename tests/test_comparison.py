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
    systems = {
        "original": evaluated(task, [RIGHT] * 40 + [WRONG] * 20),
        "8 bits": evaluated(task, [RIGHT] * 39 + [WRONG] * 21),
        "2 bits": evaluated(task, [RIGHT] * 10 + [WRONG] * 50),
    }
    found = comparison.against(systems)
    assert list(found) == ["8 bits", "2 bits"]
    near, far = found["8 bits"], found["2 bits"]
    assert not near.comparison.seen and far.comparison.seen and far.comparison.lost == 30
    assert near.retention.value == pytest.approx((39 / 60 - 1 / 3) / (40 / 60 - 1 / 3)) and near.marks == ()
    assert far.marks[0].startswith("no better than the best constant answer")
    assert far.difference.value == pytest.approx(-0.5) and far.difference.baseline == 0
    assert near.retained.baseline == 1 and near.retained.value == near.retention.value
    assert near.reference == far.reference == "original" and near.basis == "above chance (0.333)"


def test_nothing_is_retained_where_the_original_is_at_chance():
    task = choices(30)
    systems = {"a": evaluated(task, [RIGHT] * 10 + [WRONG] * 20), "b": evaluated(task, [RIGHT] * 9 + [WRONG] * 21)}
    found = comparison.against(systems)["b"]
    assert found.retention is None and found.retained is None
    assert found.basis == "none: the reference 'a' is not told from chance (0.333)"


def test_without_chance_retention_is_above_the_constant_answer():
    task = choices(60, chance={})
    systems = {"a": evaluated(task, [RIGHT] * 50 + [WRONG] * 10), "b": evaluated(task, [RIGHT] * 40 + [WRONG] * 20)}
    found = comparison.against(systems)["b"]
    assert found.retention.value == pytest.approx((40 / 60 - 0.4) / (50 / 60 - 0.4))
    assert found.basis == "above the best constant answer (0.400)"
    bare = choices(60, chance={}, constant={})
    found = comparison.against({"a": evaluated(bare, [RIGHT] * 60), "b": evaluated(bare, [WRONG] * 60)})["b"]
    assert found.retention is None and "neither chance nor a constant answer" in found.basis
    lower = choices(60, data={"sha256": "d", "lower_is_better": ("acc",)})
    found = comparison.against({"a": evaluated(lower, [RIGHT] * 60), "b": evaluated(lower, [WRONG] * 60)})["b"]
    assert found.retention is None and "lower is better" in found.basis


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


def test_retention_of_numbers_of_all_samples_together_is_bootstrapped():
    # the mean written as such a number: both ways must agree
    def share(pairs):
        return sum(right(*pair)["acc"] for pair in pairs) / len(pairs)

    beside = dict(chance={"all": 0.2, "acc": 0.2}, constant={})
    task = choices(200, metrics=("all", "acc"), aggregate={"all": share}, **beside)
    systems = {"a": evaluated(task, [RIGHT] * 150 + [WRONG] * 50), "b": evaluated(task, [WRONG, RIGHT] * 100)}
    whole = comparison.against(systems, "all", task)["b"]
    single = comparison.against(systems, "acc")["b"].retention
    assert whole.retention.value == pytest.approx(single.value) == pytest.approx((0.5 - 0.2) / (0.75 - 0.2))
    assert whole.retention.stderr == pytest.approx(single.stderr, rel=0.15)
    assert (whole.retention.low, whole.retention.high) == pytest.approx((single.low, single.high), abs=0.03)
    assert whole.basis == "above chance (0.200)"
    guessing = {"a": evaluated(task, [RIGHT] * 42 + [WRONG] * 158), "b": systems["b"]}
    none = comparison.against(guessing, "all", task)["b"]
    assert none.retention is None and none.basis.startswith("none: the reference 'a' is not told from chance")


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


def verdicts(count):
    """A task of ToxicChat's shape: two verdicts and a text a sample, F1 of all samples first, then accuracy."""
    from lib.tasks import toxicchat

    rows = [{"id": f"m{i}", "group": f"m{i}", "text": f"message {i}", "toxic": int(i % 2)} for i in range(count)]
    samples = [toxicchat.build(row, [], None) for row in rows]
    form = toxicchat.TASKS["toxicchat"]
    given = dict(metrics=form.metrics, chance=form.chance(samples), constant=form.constant(samples), score=form.score)
    return choices(0, samples=samples, aggregate=form.aggregate, **given)


def test_a_guards_flips_are_those_of_its_first_number_of_single_samples():
    task = verdicts(8)
    safe, toxic = [*outcomes(-1.0, -2.0), "safe."], [*outcomes(-2.0, -1.0), "unsafe, S1"]
    first = evaluated(task, [safe, toxic] * 4)
    second = evaluated(task, [toxic, toxic] + [safe, toxic] * 2 + [safe, [*outcomes(-2.0, -1.0), "safe"]])
    found = comparison.flips(task, first, second)  # the main one, F1, is no number of a sample
    assert found[["id", "before", "after"]].values.tolist() == [["m0", 1.0, 0.0]]
    assert found[["answer_before", "answer_after"]].values.tolist() == [["safe", "unsafe"]]
    assert comparison.flips(task, first, second, "acc_generated")["id"].tolist() == ["m0", "m7"]
    with pytest.raises(ValueError, match="metric='auroc' is no number of single samples; acc, acc_generated, unans"):
        comparison.flips(task, first, second, "auroc")


def test_choices_with_one_right_answer_are_told_from_other_tasks():
    texts = [Sample("s", "s", (Generation("Say yes.", (), 4),), {"answer": 3})]
    assert comparison.has_margins(choices(3))
    assert not comparison.has_margins(verdicts(4)) and not comparison.has_margins(choices(0, samples=texts))
