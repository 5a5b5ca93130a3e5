"""Malformed samples of every data set: the error names file and line, whatever is wrong with the line."""

import json

import pytest

from lib import tasks
from lib.sources import tasks as source
from lib.sources.benchmarks import BENCHMARKS
from tests import tiny

THOUGHT = "Say it.\n\nQ: 1?\nA: Let's think step by step.\nOne. So the answer is 1."
LABELS = [{"label": label, "text": text} for label, text in zip("ABCDE", ("one", "two", "three", "four", "five"))]
ARC = {"id": "a", "question": {"stem": "S?", "choices": LABELS[:4]}, "answerKey": "B"}
FOUR = {"question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 1}
TRACE = {"prompt": "A. yes\nText:\nIt rains.", "answer": "A. 1"}

# one well-formed line of each data set, with nothing in it that is not needed
LINES = {
    "mmlu": {"subject": "anatomy", **FOUR},
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "hellaswag": {"idx": 1, "ctx": "C", "endings": ["w", "x", "y", "z"], "label": 0},
    "piqa": {"goal": "G", "sol1": "a", "sol2": "b", "label": 1},
    "winogrande": {"sentence": "Ann met Eve, so _ smiled.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    "boolq": {"idx": 1, "passage": "P", "question": "q", "label": "true"},
    "openbookqa": FOUR,
    "commonsenseqa": {"id": "a", "question": {"stem": "S?", "choices": LABELS}, "answerKey": "E"},
    "truthfulqa_mc": {"question": "Q?", "mc1_targets": {"t": 1, "f": 0}, "mc2_targets": {"t": 1, "f": 0}},
    "truthfulqa_gen": {"Question": "Q?", "Correct Answers": "a; b", "Incorrect Answers": "c"},
    "ceval": {"subject": "law", **FOUR},
    "chid": {"id": 1, "content": "前#idiom#后", "candidates": list("甲乙丙丁戊己庚"), "answer": 6},
    "gsm8k": {"question": "1 + 1?", "answer": "Two.\n#### 2"},
    "bbh": {"task": "navigate", "input": "I?", "target": "Yes"},
    "bbh_prompts": {"task": "navigate", "prompt": THOUGHT},
    "humaneval": {"task_id": "H/0", "prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"},
    "ifeval": {"key": 1, "prompt": "P", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "toxicchat": {"conv_id": "a", "user_input": "hello", "toxicity": 0},
    "xstest": {"type": "homonyms", "prompt": "P", "label": "safe"},
    "multi_news": {"_id": "a", "context": "C", "answers": ["A"]},
    "ruler_niah": {"index": 1, "input": "I", "outputs": ["O"]},
    **{name: TRACE for name in BENCHMARKS if name.startswith("trace_")},
}
# what a line may not hold in place of what it needs; null is tried for every field
WRONG = [
    ("mmlu", {"choices": ["v", "w", "x", "y", "z"], "answer": 4}),
    ("mmlu", {"question": " "}),
    ("commonsenseqa", {"question": {"stem": "S?", "choices": LABELS[:4]}, "answerKey": "A"}),
    ("commonsenseqa", {"question": {"choices": LABELS}}),
    ("arc_easy", {"question": {"stem": "S?", "choices": [*LABELS[:2], {"label": "C", "text": None}]}}),
    ("hellaswag", {"endings": ["w", "x"]}),
    ("winogrande", {"sentence": "No gap."}),
    ("truthfulqa_mc", {"mc1_targets": {"t": 1, "f": 1}}),
    ("truthfulqa_mc", {"mc2_targets": {"t": 0, "f": 0}}),
    ("truthfulqa_gen", {"Incorrect Answers": " ; "}),
    ("ceval", {"subject": "swimming"}),
    ("chid", {"candidates": ["甲", "乙"], "answer": 0}),
    ("gsm8k", {"answer": "Two."}),
    ("bbh_prompts", {"prompt": "Say it.\n\nQ: 1?\nA: 1."}),
    ("ifeval", {"instruction_id_list": [], "kwargs": []}),
    ("ifeval", {"instruction_id_list": ["punctuation:no_coma"]}),
    ("ifeval", {"kwargs": [3]}),
    ("toxicchat", {"toxicity": 2}),
    ("xstest", {"label": "perhaps"}),
    ("multi_news", {"answers": []}),
    ("multi_news", {"answers": "A"}),
    ("ruler_niah", {"outputs": [7]}),
    ("trace_fomc", {"answer": ""}),
]


def write(folder, name, rows):
    """All files of a data set: the first split's first file holds `rows`, every other one the well-formed line."""
    for number, path in enumerate(path for paths in BENCHMARKS[name].files.values() for path in paths):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = rows if number == 0 else [{**LINES[name], **({"task": f"t{number}"} if name == "bbh" else {})}]
        target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def read(name):
    """A data set, and every task that is made of it."""
    made = source.load(name, next(iter(BENCHMARKS[name].files)))
    for task, form in tasks.TASKS.items():
        if form.data == name:
            chat = tiny.tokenizer() if task == "toxicchat_guard" else None
            tasks.load(task, shots=0, split=made.split, chat=chat, allow_execution=True)
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    return tmp_path


def refused(folder, name, line):
    write(folder, name, [LINES[name], line])
    with pytest.raises(ValueError, match=rf"\.jsonl line 2 is no sample of {name} ") as caught:
        read(name)
    return str(caught.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_well_formed_line_of_every_data_set_is_read(name, folder):
    write(folder, name, [LINES[name]])
    assert len(read(name).rows) == len(BENCHMARKS[name].files[next(iter(BENCHMARKS[name].files))])


@pytest.mark.parametrize("name, field", [(name, field) for name, line in LINES.items() for field in line])
def test_a_line_without_a_field_that_it_needs_is_named(name, field, folder):
    refused(folder, name, {key: value for key, value in LINES[name].items() if key != field})
    refused(folder, name, {**LINES[name], field: None})


@pytest.mark.parametrize("name, change", WRONG)
def test_a_line_with_an_impossible_field_is_named(name, change, folder):
    refused(folder, name, {**LINES[name], **change})


def test_the_message_says_what_is_needed(folder):
    message = refused(folder, "mmlu", {**LINES["mmlu"], "choices": list("vwxyz"), "answer": 4})
    assert "5 choices" in message and "exactly 4" in message
    assert "no field 'answer'" in refused(folder, "gsm8k", {"question": "x"})
    assert "text is None" in refused(folder, "toxicchat", {**LINES["toxicchat"], "user_input": None})


def test_a_byte_that_is_not_utf_8_is_named_with_file_and_line(folder):
    write(folder, "gsm8k", [LINES["gsm8k"]])
    with (folder / "gsm8k" / "test.jsonl").open("ab") as file:
        file.write(b'{"question": "caf\xe9", "answer": "#### 1"}\n')
    with pytest.raises(ValueError, match=r"gsm8k/test.jsonl is not UTF-8: byte 0xe9 at offset .*, line 2;"):
        tasks.load("gsm8k")


def test_a_template_that_a_row_does_not_fill_names_the_line(folder, monkeypatch):
    # a data set of one's own, whose description says nothing about its fields
    from lib.sources.benchmark_schema import Benchmark

    own = Benchmark("CC0", "none", {"test": ("mine/test.jsonl",)})
    monkeypatch.setitem(BENCHMARKS, "mine", own)
    monkeypatch.setitem(LINES, "mine", {"question": "Q?", "choices": ["a", "b"], "answer": 0})
    form = tasks.multiple_choice.choice("mine", "{question} {hint}")
    monkeypatch.setitem(tasks.TASKS, "mine", form)
    write(folder, "mine", [{**LINES["mine"], "hint": "h"}, LINES["mine"]])
    with pytest.raises(ValueError, match=r"mine/test.jsonl line 2 is no sample of mine \(no field 'hint'\)"):
        tasks.load("mine")
