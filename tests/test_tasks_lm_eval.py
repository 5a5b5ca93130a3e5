"""What our tasks ask, and how they score, is what lm-evaluation-harness asks and scores, character by character."""

import os
import random
from pathlib import Path

import pytest

from lib import tasks
from lib.sources.subjects import BBH, CEVAL
from lib.tasks.task import Generation, Likelihood, Outcome
from tests import lm_eval_local as reference
from tests import tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed; it is a test dependency")
pytestmark = pytest.mark.skipif(
    not os.environ.get("THIMBLE_DATA") or not (Path(os.environ["THIMBLE_DATA"]) / "mmlu").is_dir(),
    reason="set THIMBLE_DATA to a folder with evaluation data",
)
COUNT = 6  # documents compared of each task
CHOICES = (
    *("arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "boolq", "openbookqa", "commonsenseqa"),
    *("truthfulqa_mc1", "truthfulqa_mc2"),
)
TEXTS = (
    *("The answer is N.", "the answer is N.", "The answer is N", "So N. The answer is $N. Or 7.", "N", "= N dollars"),
    *(
        "The answer is 12,345.",
        "No number here.",
        "",
        "The answer is -3.",
        "It is $N.00.",
        "1 2 3 N.",
        "The answer is N. Q",
    ),
)


def compare(samples, theirs, places, *, chat=None):
    """Samples ask what the documents `places` of the harness's task ask."""
    expected = reference.requests(theirs, places, chat=chat)
    order = sorted(range(len(places)), key=places.__getitem__)  # the harness goes through its documents in order
    assert len(samples) == len(expected)
    for which, asked in zip(order, expected):
        assert [_plain(request) for request in samples[which].requests] == [_given(each) for each in asked]


def score_choices(task, theirs, samples, places):
    """Random log-likelihoods, with ties, get the harness's scores."""
    generator = random.Random(0)
    for sample, index in zip(samples, places):
        answers = [(generator.choice([-3.0, -2.0, generator.uniform(-30, -1)]), False) for _ in sample.requests]
        found = task.score(sample, [Outcome(value, greedy, 1) for value, greedy in answers])
        expected = reference.scores(theirs, index, answers)["none"]
        assert {metric: found[metric] for metric in task.metrics} == pytest.approx(expected)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_multiple_choice_equals_the_harness(name, chat):
    theirs, tokenizer = reference.like(name), tiny.tokenizer() if chat else None
    task = tasks.load(name, count=COUNT, seed=1, chat=tokenizer)
    places = reference.positions(name, task.samples)
    compare(task.samples, theirs, places, chat=tokenizer)
    score_choices(task, theirs, task.samples, places)


@pytest.mark.parametrize("name, subjects", [("mmlu", 57), ("ceval", len(CEVAL))])
@pytest.mark.parametrize("shots", [0, 5])
def test_every_subject_equals_the_harness(name, subjects, shots):
    task = tasks.load(name, each=1, shots=shots)
    assert len(task.samples) == subjects
    for sample, index in zip(task.samples, reference.positions(name, task.samples)):
        theirs = reference.like(name, group=sample.group, shots=shots)
        compare([sample], theirs, [index])
        score_choices(task, theirs, [sample], [index])


def test_examples_in_a_chat_are_turns_as_in_the_harness():
    tokenizer = tiny.tokenizer()
    task = tasks.load("mmlu_anatomy", count=3, chat=tokenizer)
    theirs = reference.like("mmlu", group="anatomy", shots=5)
    compare(task.samples, theirs, reference.positions("mmlu", task.samples), chat=tokenizer)


def test_gsm8k_equals_the_harness():
    task, theirs = tasks.load("gsm8k", count=COUNT), reference.like("gsm8k")
    places = reference.positions("gsm8k", task.samples)
    compare(task.samples, theirs, places)
    for sample, index in zip(task.samples, places):
        for text in TEXTS:
            text = text.replace("N", sample.target)
            expected, found = reference.scores(theirs, index, [text]), task.score(sample, [text])
            assert found["strict"] == expected["strict-match"]["exact_match"], text
            assert found["flexible"] == expected["flexible-extract"]["exact_match"], text


def test_every_kind_of_bbh_equals_the_harness():
    task = tasks.load("bbh", each=1)
    assert len(task.samples) == len(BBH) == 27
    for sample, index in zip(task.samples, reference.positions("bbh", task.samples)):
        theirs = reference.like("bbh", group=sample.group)
        compare([sample], theirs, [index])
        for text in ("So the answer is N.", "the answer is N", "N", "the answer is (A).", "the answer is  N ."):
            text = text.replace("N", sample.target)
            expected = reference.scores(theirs, index, [text])["get-answer"]
            assert task.score(sample, [text]) == expected, (sample.group, text)


def test_truthfulqa_generation_equals_the_harness():
    task, theirs = tasks.load("truthfulqa_gen", count=1), reference.like("truthfulqa_gen")
    places = reference.positions("truthfulqa_gen", task.samples)
    compare(task.samples, theirs, places)
    for sample, index in zip(task.samples, places):
        for text in (" Yes . No", "A: " + sample.target["true"][0]):
            assert task.score(sample, [text]) == pytest.approx(reference.scores(theirs, index, [text])["none"]), text


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct", "ifeval", "multi_news"])
def test_generation_asks_what_the_harness_asks(name):
    task = tasks.load(name, count=3, allow_execution=True)
    compare(task.samples, reference.like(name), reference.positions(name, task.samples))


def test_humaneval_in_a_chat_asks_what_the_harness_asks():
    tokenizer = tiny.tokenizer()
    task = tasks.load("humaneval_instruct", count=2, chat=tokenizer, allow_execution=True)
    compare(task.samples, reference.like(task.name), reference.positions(task.name, task.samples), chat=tokenizer)


def _plain(request):
    if isinstance(request, Likelihood):
        return request.context, request.continuation
    assert isinstance(request, Generation)
    return request.prompt, request.until, request.max_new_tokens


def _given(arguments):
    if isinstance(arguments[1], str):
        return tuple(arguments)
    prompt, options = arguments
    return prompt, tuple(options["until"]), options.get("max_gen_toks", 256)
