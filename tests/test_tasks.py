"""Loading tasks: samples, draws, examples, chat templates, baselines, and every kind of bad input."""

import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import tasks
from lib.sources import tasks as source
from lib.sources import used
from lib.tasks.prompt import Prompt
from lib.tasks.task import Generation, Likelihood, Outcome
from tests import tiny

OWN = [name for name in tasks.TASKS if name.startswith("packaged_")]
QUESTIONS = [
    {
        "subject": "anatomy",
        "question": " Where is the heart? ",
        "choices": ["Chest", "Foot", "Hand", "Ear"],
        "answer": 0,
    },
    {"subject": "anatomy", "question": "Which is a bone?", "choices": ["Hair", "Femur", "Skin", "Nail"], "answer": 1},
    {"subject": "astronomy", "question": "Which is a star?", "choices": ["Mars", "Moon", "Sun", "Earth"], "answer": 2},
]


def folder(path, **files):
    """A data folder with JSONL files: `name__part` stands for name/part.jsonl."""
    for name, rows in files.items():
        target = path / (name.replace("__", "/") + ".jsonl")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with a tiny MMLU, BoolQ and GSM8K of our own."""
    parts = {f"mmlu__test_{part}": [QUESTIONS[index]] for index, part in enumerate(("humanities", "other", "stem"))}
    boolq = [
        {"idx": index, "passage": "Ice floats.", "question": f"does ice float {index}", "label": label}
        for index, label in enumerate(("true", "true", "false"))
    ]
    gsm8k = [{"question": f"{n} + 1?", "answer": f"It is <<{n}+1>>{n + 1}.\n#### {n + 1}"} for n in (1, 2, 2)]
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    return folder(
        tmp_path,
        **parts,
        mmlu__test_social_sciences=[{**QUESTIONS[1], "question": "Another?"}],
        mmlu__dev=[{**row, "question": f"{row['question'].strip()} {n}"} for row in QUESTIONS for n in range(2)],
        boolq__val=boolq,
        gsm8k__test=gsm8k,
    )


@pytest.fixture
def offline(monkeypatch):
    """No network, whatever the machine has."""

    def refuse(*arguments, **options):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(source.hub, "revision", lambda name: None)
    monkeypatch.setattr("datasets.load_dataset", refuse)


@pytest.mark.parametrize("name", OWN)
def test_packaged_tasks_need_no_data(name, monkeypatch, offline):
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    task, again = (tasks.load(name, allow_execution=True) for _ in range(2))
    assert task.samples == again.samples and len(task.samples) >= 12
    assert len({sample.id for sample in task.samples}) == len(task.samples)
    json.dumps([sample.target for sample in task.samples])
    for value in [*task.chance.values(), *task.constant.values()]:
        assert 0 <= value < 0.5
    assert ("task", task.name) in [(each["kind"], each["name"]) for each in used()]


def test_packaged_choices_are_fair():
    for name in ("packaged_facts", "packaged_continuation"):
        samples = tasks.load(name).samples
        right = [sample.target["answer"] for sample in samples]
        assert max(right.count(letter) for letter in range(4)) <= 0.35 * len(samples)


def test_one_line_and_one_template_make_a_sample(data):
    task = tasks.load("mmlu", shots=1)
    sample = next(sample for sample in task.samples if sample.group == "anatomy")
    context = (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "Where is the heart? 0\nA. Chest\nB. Foot\nC. Hand\nD. Ear\nAnswer: A\n\n"
        "Where is the heart?\nA. Chest\nB. Foot\nC. Hand\nD. Ear\nAnswer:"
    )
    assert sample.requests == tuple(Likelihood(context, f" {letter}") for letter in "ABCD")
    assert sample.id == "anatomy/0" and sample.target["answer"] == 0
    assert task.data["shots"] == 1 and task.data["chat"] is None and task.data["licence"] == "MIT"
    assert task.data["available"] == 4 and len(task.data["sha256"]) == 64


def test_a_part_is_a_task(data):
    assert [sample.group for sample in tasks.load("mmlu_astronomy", shots=0).samples] == ["astronomy"]
    with pytest.raises(ValueError, match=r"part 'anatomi'.*did you mean 'anatomy'"):
        tasks.load("mmlu_anatomi", shots=0)


def test_baselines_come_from_the_data(data):
    task = tasks.load("boolq")
    assert task.chance["acc"] == 0.5 and task.constant["acc"] == pytest.approx(2 / 3)
    assert len({sample.group for sample in task.samples}) == 1  # one passage
    assert tasks.load("gsm8k").constant == {"strict": pytest.approx(2 / 3), "flexible": pytest.approx(2 / 3)}


def test_normalised_accuracy_divides_by_characters():
    task = tasks.load("packaged_continuation")
    sample = task.samples[0]
    lengths = sample.target["characters"]
    per_character = [-1.0, -0.5, -2.0, -3.0]
    outcomes = [Outcome(each * length, False, 1) for each, length in zip(per_character, lengths)]
    sums = [outcome.logprob for outcome in outcomes]
    found = task.score(sample, outcomes)
    assert found["acc_norm"] == float(sample.target["answer"] == 1)
    assert found["acc"] == float(sample.target["answer"] == sums.index(max(sums)))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_a_larger_draw_holds_the_smaller_one(one, other, seed):
    ids = [
        {sample.id for sample in tasks.load("packaged_facts", count=count, seed=seed).samples} for count in (one, other)
    ]
    assert [len(each) for each in ids] == [one, other]
    small, large = sorted(ids, key=len)
    assert small <= large


def test_each_draws_from_every_group(data):
    task = tasks.load("mmlu", each=1, shots=0)
    assert sorted(sample.group for sample in task.samples) == ["anatomy", "astronomy"]


def test_a_chat_template_forms_turns(data):
    task = tasks.load("mmlu_anatomy", shots=1, chat=tiny.tokenizer())
    request = task.samples[0].requests[0]
    assert request.context.startswith("<system> The following are") and request.context.endswith(
        "Answer:\n<assistant> "
    )
    assert request.context.count("<user>") == 2 and request.context.count("<assistant> A\n") == 1
    assert request.continuation == "A"
    assert task.data["chat"] and task.data["chat"] != tasks.load("mmlu_anatomy", shots=1).data["chat"]


def test_a_prefix_begins_the_answer():
    assert Prompt("Q?", (("P?", "p"),), prefix="It is").render() == "P? p\n\nQ? It is"
    assert Prompt("Q?\n", prefix="It is").render() == "Q?\nIt is"
    assert Prompt("Q?", prefix="It is").render(tiny.tokenizer()).endswith("<assistant> It is")


def test_a_chat_without_template_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template.*instruction-tuned"):
        tasks.load("packaged_facts", chat=tokenizer)


def test_a_guard_needs_its_template(tmp_path, monkeypatch):
    rows = [{"conv_id": "a", "user_input": "hello", "toxicity": 0, "jailbreaking": 0}]
    monkeypatch.setenv("THIMBLE_DATA", str(folder(tmp_path, toxicchat__test=rows)))
    with pytest.raises(ValueError, match="give chat=tokenizer"):
        tasks.load("toxicchat_guard")
    requests = tasks.load("toxicchat_guard", chat=tiny.tokenizer()).samples[0].requests
    assert requests[0] == Likelihood("<user> hello\n<assistant> ", "\n\nsafe") and isinstance(requests[2], Generation)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "hellaswagg"}, "task 'hellaswagg' is unknown.*did you mean 'hellaswag'"),
        ({"name": "packaged_facts", "count": 0}, "count=0"),
        ({"name": "packaged_facts", "count": 41}, "the data have 40 samples"),
        ({"name": "packaged_facts", "count": 2, "each": 2}, "one of them"),
        ({"name": "packaged_facts", "shots": 2}, "only 0 is allowed"),
        ({"name": "packaged_arithmetic", "shots": 9}, "hold 8 examples"),
        ({"name": "packaged_arithmetic", "shots": -1}, "whole numbers from 0"),
        ({"name": "packaged_arithmetic", "repeats": 2}, "scored by pass@k only"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.load(**options)


def test_programs_run_only_where_it_was_asked():
    with pytest.raises(PermissionError, match="allow_execution=True"):
        tasks.load("packaged_programs")
    task = tasks.load("packaged_programs", repeats=10, allow_execution=True)
    assert task.metrics == ("pass@1", "pass@10") and len(task.samples[0].requests) == 10


def test_absent_data_say_what_to_set(monkeypatch, tmp_path, offline):
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"THIMBLE_DATA is not set.*piqa/valid.jsonl.*packaged_"):
        tasks.load("piqa")
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no copy on the Hub is known; set THIMBLE_DATA.*chid/test_public"):
        tasks.load("chid")


@pytest.mark.parametrize(
    "line, message",
    [
        ("{not json", "line 2 is not JSON"),
        ("[1]", "line 2 is a list"),
        ('{"question": "Q"}', r"line 2 is no sample of boolq \(no field 'label'\)"),
        ('{"idx": 1, "passage": "P", "question": "Q", "label": "maybe"}', r"line 2 is no sample of boolq.*maybe"),
        ('{"idx": 0, "passage": "P", "question": "Q", "label": "true"}', "two rows with id '0'"),
    ],
)
def test_a_malformed_line_is_named(data, line, message):
    good = {"idx": 0, "passage": "P", "question": "Q", "label": "true"}
    folder(data, boolq__val=[good, line])
    with pytest.raises(ValueError, match=message):
        tasks.load("boolq")


@pytest.mark.parametrize(
    "change", [{"answer": 4}, {"choices": ["A", "", "C", "D"]}, {"answer": "x"}, {"choices": None}]
)
def test_impossible_choices_are_named(data, change):
    folder(data, mmlu__test_stem=[{**QUESTIONS[0], **change}])
    with pytest.raises(ValueError, match=r"test_stem.jsonl line 1 is no sample of mmlu"):
        tasks.load("mmlu", shots=0)


def test_an_empty_file_is_refused(data):
    folder(data, boolq__val=[])
    with pytest.raises(ValueError, match="has no rows"):
        tasks.load("boolq")


def test_an_unknown_split_names_the_known_ones(data):
    with pytest.raises(ValueError, match=r"split='tests' of mmlu.*dev, test; did you mean 'test'"):
        tasks.load("mmlu", split="tests")
