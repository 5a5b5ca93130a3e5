"""Instruction rows as text: from a local file, from a Hub that is stood in for, and more of C4 for training."""

import json

import pytest

from lib.sources import file_formats, hub, texts

ROWS = [{"instruction": f"Do {i}.", "input": "With this." if i % 2 else "", "output": f"Done {i}."} for i in range(20)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    return tmp_path


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_is_instruction_input_and_output():
    assert file_formats.instruction(ROWS[0]) == "Do 0.\n\nDone 0."
    assert file_formats.instruction(ROWS[1]) == "Do 1.\n\nWith this.\n\nDone 1."
    assert file_formats.instruction({"text": "words"}) is None
    assert file_formats.instruction({"instruction": "Do.", "output": 3}) is None


def test_the_local_file_is_cut_in_order(folder):
    lines(folder / "alpaca" / "alpaca_4000.jsonl", ROWS)
    lines(folder / "alpaca" / "other.jsonl", [{"text": "another"}])
    parts = [texts.load("alpaca", split) for split in ("train", "valid", "test")]
    assert [len(part.documents) for part in parts] == [16, 2, 2]
    assert [document for part in parts for document in part.documents] == [
        file_formats.instruction(row) for row in ROWS
    ]


def test_a_row_with_a_text_keeps_it(folder):
    lines(folder / "mine" / "train.jsonl", [{**ROWS[0], "text": "the text"}])
    assert texts.load("mine", "train").documents == ["the text"]


def test_the_hub_serves_the_same_form(monkeypatch):
    asked = []
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: asked.append(names) or ROWS)
    monkeypatch.setattr(hub, "revision", lambda name: "0123456789abcdef")
    found = texts.load("alpaca", "test")
    assert found.documents == [file_formats.instruction(row) for row in ROWS[18:]] and asked == [
        ("tatsu-lab/alpaca", "default")
    ]
    assert found.origin.startswith("Hub tatsu-lab/alpaca default train at 0123456789ab")


def test_c4_for_training_takes_the_larger_samples_in(folder):
    lines(folder / "c4" / "c4_demo_300.jsonl", [{"text": str(number)} for number in range(10)])
    alone = texts.load("c4", "train").documents
    lines(folder / "redpajama_sample" / "c4-rp2.jsonl", [{"text": "more", "meta": {}}])
    found = texts.load("c4", "train")
    assert found.documents == [*alone, "more"] and "c4-rp2.jsonl, 1 documents" in found.origin
    assert texts.load("c4", "test").documents == ["9"]
