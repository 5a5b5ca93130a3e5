"""Guards: the constant answer, unlike systems, test samples in the training text, cut prompts and empty answers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.evaluation.scores import Evaluation, Row
from lib.metrics import guards, intervals
from lib.metrics.score import Score, from_values


def evaluation(values, *, constant=0.5, truncated=0, answers=("A",), requests="r", **data):
    """A finished evaluation whose samples scored `values`."""
    rows = [Row(f"s{i}", f"g{i}", list(answers), {"acc": float(value)}) for i, value in enumerate(values)]
    given = {"sha256": "d", "split": "test", "shots": 0, "chat": None, "lower_is_better": (), **data}
    spans = {"acc": intervals.mean(values)}
    fields = dict(task="t", data=given, rows=rows, intervals=spans, chance={"acc": 0.25}, constant={"acc": constant})
    found = Evaluation(**fields, truncated=truncated, requests=requests)
    found["acc"] = replace(from_values(values, "share", higher_is_better=True), baseline=constant)
    return found


def test_a_guard_worse_than_always_saying_safe_is_marked():
    values = [1] * 922 + [0] * 78
    assert guards.against_constant(values, 0.927) == "no better than the best constant answer (0.922 against 0.927)"
    assert guards.against_constant(values, 0.922).startswith("no better")  # at the constant answer
    assert "lies in" in guards.against_constant(values, 0.915)
    assert guards.against_constant(values, 0.85) is None
    assert guards.against_constant([0.4, 0.5, 0.6] * 9, 0.2, lower_is_better=True).startswith("no better")
    assert guards.against_constant([0.4, 0.5, 0.6] * 9, 0.9, lower_is_better=True) is None


def test_marks_name_everything_a_reader_must_know():
    assert guards.marks(evaluation([1] * 90 + [0] * 10)) == []
    odd = evaluation([1, 0] * 50, truncated=3, answers=["", "x"])
    assert guards.marks(odd) == [
        "no better than the best constant answer (0.500 against 0.500)",
        "3 samples lost the left end of their prompt: it is longer than the model's context",
        "100 answers are empty",
    ]
    odd["f1"] = Score(0.1, 0.01, 100, "share", True, baseline=0.2)  # a number that no sample has
    odd.intervals["f1"] = intervals.Interval(0.1, 0.01, 0.08, 0.12, 100)
    assert guards.marks(odd, "f1")[0] == "no better than the best constant answer (0.100 against 0.200)"
    odd["f1"] = replace(odd["f1"], baseline=0.09)
    assert guards.marks(odd, "f1")[0].startswith("not told from the best constant answer (0.090 lies in 0.080 to 0.12")


def test_systems_that_differ_in_the_model_alone_are_compared():
    guards.same_conditions({"original": evaluation([1, 0, 1]), "4 bits": evaluation([0, 0, 1])})


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (evaluation([1, 0, 1], sha256="e"), "sha256 of 'a' is 'd', that of 'b' is 'e'"),
        (evaluation([1, 0, 1], shots=5), "shots of 'a' is 0"),
        (evaluation([1, 0, 1], chat="template"), "chat of 'a' is None"),
        (evaluation([1, 0, 1], requests="other caps"), "requests of 'a' is 'r'"),
        (evaluation([1, 0]), "samples of 'a' is 3"),
    ],
)
def test_systems_that_differ_in_more_stop(other, what):
    with pytest.raises(ValueError, match=what):
        guards.same_conditions({"a": evaluation([1, 0, 1]), "b": other})


def test_one_arm_is_no_comparison():
    with pytest.raises(ValueError, match="1 systems; two or more"):
        guards.same_conditions({"a": evaluation([1, 0])})


NUMBERS = [f"word{i}" for i in range(400)]
QUESTION = "When the river froze, seven old fishermen walked across it: the first since winter of 1911!"


def test_a_planted_test_sample_is_found_whatever_its_case_and_punctuation():
    texts = [" ".join(NUMBERS), "Once. " + QUESTION.upper().replace(",", ";") + " They say so.", "nothing"]
    samples = {"planted": QUESTION, "clean": QUESTION.replace("fishermen", "women"), "short": "Who was it?"}
    found = guards.contamination(samples, texts)
    assert list(found.found) == ["planted"] and found.short == ("short",) and found.checked == 2
    assert found.found["planted"] in QUESTION.lower().replace(",", "").replace(":", "")
    assert str(found) == "1 of 2 samples occur in the text: planted (1 too short to tell)"
    with pytest.raises(ValueError, match="1 of 2 test samples occur in calibration, first 'planted'"):
        guards.refuse_contaminated(samples, texts, name="calibration")
    guards.refuse_contaminated(samples, texts[:1])


def test_samples_below_13_words_are_looked_up_whole_and_chinese_by_characters():
    nine = "one two three four five six seven eight nine"
    assert guards.contamination({"s": nine}, [f"zero {nine} ten"]).found == {"s": nine}
    assert not guards.contamination({"s": nine}, [nine.replace("nine", "none")]).found
    chinese = "今天天气很好我们一起去公园散步吧"
    assert guards.contamination({"s": chinese}, ["他说" + chinese + "。"]).found
    assert not guards.contamination({"s": chinese}, [chinese[:8]]).found
    with pytest.raises(ValueError, match="words=3"):
        guards.contamination({}, [], words=3)


@given(st.integers(0, 387), st.integers(0, 100), st.integers(10, 16))
def test_thirteen_words_in_a_row_are_the_border(start, at, length):
    generator = np.random.default_rng(at)
    other = [f"other{i}" for i in generator.integers(0, 999, 120)]
    text = other[:at] + NUMBERS[start : start + length] + other[at:]
    shared = len(NUMBERS[start : start + length])
    found = guards.contamination({"s": " ".join(NUMBERS)}, [" ".join(text)])
    assert bool(found.found) == (shared >= 13)
