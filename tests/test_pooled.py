"""Numbers pooled over instructions are no means over prompts: prompts of one and of three instructions tell them apart.

Every metric of IFEval's instruction level must be compared, marked and given a baseline as what it is.
"""

import pytest

from lib.evaluation import comparison, run
from lib.metrics import guards
from lib.tasks import ifeval
from lib.tasks.task import Generation, Sample, Task

COMMA, TITLE, END = "punctuation:no_comma", "detectable_format:title", "startend:quotation"


class Saying:
    """An engine that knows a text for every prompt."""

    identity, truncated = "saying", ()

    def __init__(self, texts):
        self.texts = texts

    def loglikelihoods(self, requests, **options):
        raise AssertionError("texts alone are asked for")

    def generate(self, requests, *, wanted, finished):
        for place in wanted:
            finished(place, self.texts[requests[place].prompt])


def task(count=6):
    """`count` prompts with one instruction (no comma), and as many with three (two of which plain words break)."""
    kinds = [[COMMA], [COMMA, TITLE, END]]
    samples = [
        Sample(f"s{i}", f"s{i}", (Generation(f"p{i}", (), 9),), {"instructions": kind, "arguments": [{}] * len(kind)})
        for i, kind in enumerate(kinds * count)
    ]
    given = ifeval.constant(samples)
    return Task("t", samples, ifeval.METRICS, {}, given, {}, ifeval.score, ifeval.RULES["aggregate"])


def said(texts, asked):
    """The evaluation of what `texts` say to the prompts with one and with three instructions."""
    answers = {sample.requests[0].prompt: texts[place % 2] for place, sample in enumerate(asked.samples)}
    return run.evaluate(Saying(answers), asked, cache=False)


def test_the_constant_answer_is_pooled_as_the_score_is():
    asked = task()
    # one paragraph of plain words has no comma, no title and no quotation: (1 + 1) of 4 instructions, not (1 + 1/3) / 2
    assert asked.constant["instruction_strict"] == pytest.approx(2 / 4)
    assert asked.constant["prompt_strict"] == pytest.approx(1 / 2)
    found = said(["plain words", "plain words"], asked)
    assert found["instruction_strict"].value == found["instruction_strict"].baseline == pytest.approx(2 / 4)
    assert guards.marks(found, "instruction_strict")[0].endswith("(0.500 against 0.500)")


def test_marks_speak_of_the_score_that_is_shown():
    asked = task()
    found = said(["a, b", '"<<title>>, a"'], asked)  # none of one, two of three: 2 of 4; mean over prompts 1/3
    assert found["instruction_strict"].value == pytest.approx(2 / 4)
    assert guards.marks(found, "instruction_strict")[0].endswith("(0.500 against 0.500)")


def test_pooled_numbers_are_compared_with_their_task_only():
    asked = task()
    one, other = said(["plain", "plain"], asked), said(["plain", '"<<title>>"'], asked)
    systems = {"a": one, "b": other}
    with pytest.raises(ValueError, match=r"instruction_strict.*0\.500 of all.*0\.667.*task="):
        comparison.against(systems, "instruction_strict")
    found = comparison.against(systems, "instruction_strict", asked)["b"].comparison
    assert (found.first, found.second) == (pytest.approx(0.5), pytest.approx(1.0))
    assert found.difference == pytest.approx(0.5)
    assert comparison.against(systems, "prompt_strict")["b"].comparison.difference == pytest.approx(0.5)
