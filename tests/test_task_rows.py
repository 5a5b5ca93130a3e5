"""Files and the Hub lay out the same data differently: both become the same rows."""

import pytest

from lib import tasks
from lib.sources import benchmarks, record_adapters
from lib.tasks import bbh

CHOICES = [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]
COLUMNS = {"text": ["x", "y"], "label": ["A", "B"]}
LABELLED = {"id": "a", "question": "S", "choices": ["x", "y"], "answer": 1}


def test_labelled_choices():
    assert (
        record_adapters.labelled({"id": "a", "question": {"stem": "S", "choices": CHOICES}, "answerKey": "B"})
        == LABELLED
    )
    assert record_adapters.labelled({"id": "a", "question": "S", "choices": COLUMNS, "answerKey": "B"}) == LABELLED
    assert (
        record_adapters.openbook({"id": "a", "question_stem": "S", "choices": COLUMNS, "answerKey": "B "}) == LABELLED
    )


def test_hellaswag_loses_its_marks():
    line = {"activity_label": "Cooking", "ctx_a": "A pan [header] is", "ctx_b": "hot", "label": "1"}
    found = record_adapters.hellaswag_hub({**line, "endings": ["a [title] b", "c  d"]})
    assert found == {"question": "Cooking: A pan is Hot", "choices": ["a. b", "c d"], "answer": 1}


def test_ceval_by_index_and_by_letter():
    chosen = {"question": "Q", "choices": ["1", "2", "3", "4"], "answer": 2, "subject": "law"}
    lettered = {"question": "Q", **dict(zip("ABCD", "1234")), "answer": "C", "config": "law"}
    found = record_adapters.ceval(lettered)
    assert found == {key: record_adapters.ceval(chosen)[key] for key in found}


def test_boolq_labels_in_words_and_numbers():
    line = {"idx": 3, "passage": "P", "question": "q"}
    assert [record_adapters.boolq({**line, "label": label})["answer"] for label in ("true", "false", 1, 0)] == [
        1,
        0,
        1,
        0,
    ]


def test_truthfulqa_answers_in_lists_and_in_one_string():
    one = record_adapters.truthful_answers({"Question": "Q", "Correct Answers": "a; b;", "Incorrect Answers": "c"})
    assert one == record_adapters.truthful_answers(
        {"question": "Q", "correct_answers": ["a", "b"], "incorrect_answers": ["c"]}
    )
    targets = {"choices": ["t", "f"], "labels": [1, 0]}
    lists = record_adapters.truthful_choices({"question": "Q", "mc1_targets": targets, "mc2_targets": targets})
    assert lists == record_adapters.truthful_choices(
        {"question": "Q", "mc1_targets": {"t": 1, "f": 0}, "mc2_targets": {"t": 1, "f": 0}}
    )
    with pytest.raises(ValueError, match="not exactly one true answer"):
        record_adapters.truthful_choices({"question": "Q", "mc1_targets": {"t": 1, "f": 1}, "mc2_targets": {"t": 1}})


def test_ifeval_arguments_that_are_not_given_are_left_out():
    line = {"key": 1, "prompt": "P", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"a": 1, "b": None}]}
    assert record_adapters.instruction(line)["arguments"] == [{"a": 1}]
    with pytest.raises(ValueError, match="different lengths"):
        record_adapters.instruction({**line, "kwargs": []})


def test_the_examples_of_a_published_prompt_are_cut_apart():
    text = (
        "canary\n-----\nSay it.\n\nQ: 1?\nA: Let's think step by step.\nOne. So 1.\n\n"
        "Q: 2?\nA: Let's think step by step. Two."
    )
    for line in ({"task": "t", "prompt": text}, {"dataset_name": "t", "chain_of_thought_prompt": text}):
        cut = bbh.cut(record_adapters.bbh_prompt(line)["prompt"])
        assert [(each["question"], each["answer"]) for each in cut] == [("1?", "One. So 1."), ("2?", "Two.")]
        assert {each["description"] for each in cut} == {"Say it."}


def test_gaps_split_a_text():
    line = {"sentence": "Ann met Eve, so _ smiled.", "option1": "Ann", "option2": "Eve", "answer": "2"}
    found = record_adapters.winogrande(line)
    assert (found["before"], found["after"], found["answer"]) == ("Ann met Eve, so ", " smiled.", 1)
    line = {"id": 1, "content": "前#idiom#后", "candidates": ["一", "二"], "answer": 0}
    assert (record_adapters.chid(line)["before"], record_adapters.chid(line)["after"]) == ("前", "后")
    with pytest.raises(ValueError):
        record_adapters.chid({**line, "content": "没有"})


def test_the_hub_is_asked_at_the_pinned_commit(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return [{"id": "a", "question": "S", "choices": COLUMNS, "answerKey": "B"}]

    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = tasks.load("arc_easy")
    pinned = benchmarks.BENCHMARKS["arc_easy"].revision
    assert asked == [("allenai/ai2_arc", "ARC-Easy", "test", pinned)]
    assert task.data["source"] == f"Hub allenai/ai2_arc test at {pinned[:12]}"
    assert [request.continuation for request in task.samples[0].requests] == [" x", " y"]


def test_a_malformed_row_of_the_hub_is_named(monkeypatch):
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **options: [{"goal": "G", "sol1": "a", "label": 0}])
    with pytest.raises(ValueError, match=r"baber/piqa  row 0 is no sample of piqa \(no field 'sol2'\)"):
        tasks.load("piqa")
