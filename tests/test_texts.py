"""Texts by name and path, their splits, and files that cannot be read as text."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from lib import extensions, sources
from lib.files import data
from lib.sources import builtin_text, hub, readers, texts

REAL = Path(os.environ.get("THIMBLE_DATA", "/nonexistent"))
real = pytest.mark.skipif(not (REAL / "wikitext2").is_dir(), reason="THIMBLE_DATA names no folder with wikitext2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    return tmp_path


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------- the packaged text


def test_packaged_splits_are_a_partition():
    from pydoc_data.topics import topics as source

    parts = {split: texts.load("packaged", split).documents for split in ("train", "valid", "test")}
    assert sorted(itertools.chain(*parts.values())) == sorted(text for text in source.values() if text.strip())
    share = {split: sum(map(len, part)) / sum(map(len, source.values())) for split, part in parts.items()}
    assert 0.75 < share["train"] < 0.85 and 0.07 < share["valid"] < 0.12 and 0.07 < share["test"] < 0.12


def test_packaged_splits_share_no_long_paragraph():
    def paragraphs(split):
        found = "\n\n".join(texts.load("packaged", split).documents).split("\n\n")
        return {" ".join(paragraph.split()) for paragraph in found if len(" ".join(paragraph.split())) >= 80}

    train, valid, test = (paragraphs(split) for split in ("train", "valid", "test"))
    assert len(train) > 100 and not train & valid and not train & test and not valid & test


def test_families_join_through_others():
    first, second, third = ("word " * 20 + name for name in "xyz")
    found = builtin_text.families({"a": first, "b": f"{first}\n\n{second}", "c": second, "d": third, "e": "short"})
    assert sorted(found) == [["a", "b", "c"], ["d"], ["e"]]


def test_topics_that_are_no_text_are_skipped(monkeypatch):
    import pydoc_data.topics

    monkeypatch.setattr(pydoc_data.topics, "topics", {"a": "x" * 90, "b": "  \n", "c": None})
    assert builtin_text.documents("train")[0] == ["x" * 90]


def test_origin_is_printed_and_noted(capsys):
    loaded = texts.load()
    assert loaded.origin.startswith("pydoc_data.topics of Python 3.")
    assert loaded.sha256 == hashlib.sha256("\n\n".join(loaded.documents).encode()).hexdigest()
    assert f"text packaged/test: {loaded.origin}; " in capsys.readouterr().out
    entry = {"kind": "text", "name": "packaged", "split": "test", "origin": loaded.origin, "sha256": loaded.sha256}
    assert sources.used().count(entry) == 1


# ---------------------------------------------------------------- files


def test_txt_is_one_document_as_it_is(folder):
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "test.txt").write_bytes("\ufeff first \r\n\n naïve \n".encode())
    loaded = texts.load("wikitext2", "test")
    assert loaded.documents == [" first \r\n\n naïve \n"] == [loaded.text]
    assert loaded.origin == "$THIMBLE_DATA/wikitext2/test.txt"


@pytest.mark.parametrize("absolute", [True, False])
def test_jsonl_says_which_field(folder, absolute):
    path = lines(folder / "test-a.jsonl", [{"id": 1, "content": "one"}, {"content": " "}, {"content": "two"}])
    path.write_text(path.read_text() + "\n")
    loaded = texts.load(str(path) if absolute else "test-a.jsonl")
    assert loaded.documents == ["one", "two"] and loaded.text == "one\n\ntwo"
    assert loaded.origin == "$THIMBLE_DATA/test-a.jsonl, field content"


def test_parquet(folder):
    pd.DataFrame({"n": [1, 2, 3], "text": ["one", None, "three"]}).to_parquet(folder / "valid.parquet")
    loaded = texts.load("valid.parquet", "valid")
    assert loaded.documents == ["one", "three"] and loaded.origin.endswith("valid.parquet, field text")


def test_folder_with_a_file_or_several_for_each_split(folder):
    for name in ("train-00", "train-01", "validation", "test", "test_full"):
        lines(folder / "books" / f"{name}.jsonl", [{"text": name}])
    assert texts.load("books", "train").documents == ["train-00", "train-01"]
    assert texts.load("books", "train").origin == "$THIMBLE_DATA/books/train-00.jsonl and 1 more, field text"
    assert texts.load("books", "valid").documents == ["validation"]
    assert texts.load("books", "test").documents == ["test"]  # and not test_full, which holds it again


def test_single_txt_is_cut_at_lines(folder):
    (folder / "play").mkdir()
    (folder / "play" / "input.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    parts = [texts.load("play", split) for split in ("train", "valid", "test")]
    assert "".join(part.text for part in parts) == (folder / "play" / "input.txt").read_text()
    assert [len(part.text.splitlines()) for part in parts] == [80, 10, 10]
    assert parts[2].origin.endswith("input.txt, 10 of 100 lines as test (cut 80/10/10 in order)")


def test_c4_is_its_own_file_cut_by_documents(folder):
    lines(folder / "c4" / "c4_demo_300.jsonl", [{"text": str(number)} for number in range(30)])
    lines(folder / "c4" / "web_lines.jsonl", [{"text": "another"}])
    parts = [texts.load("c4", split) for split in ("train", "valid", "test")]
    assert [document for part in parts for document in part.documents] == [str(number) for number in range(30)]
    assert [len(part.documents) for part in parts] == [24, 3, 3]


def test_a_split_named_by_its_file_is_not_another(folder):
    (folder / "test.txt").write_text("words")
    with pytest.raises(ValueError, match=r"is a test file by its name, split='train' was given; use split='test'"):
        texts.load("test.txt", "train")


def test_folder_without_the_split(folder):
    for name in ("one", "two"):
        lines(folder / "books" / f"{name}.jsonl", [{"text": name}])
    with pytest.raises(FileNotFoundError, match=r"name one of its files instead: one\.jsonl, two\.jsonl"):
        texts.load("books", "test")


@pytest.mark.parametrize("content", ["", "  \n\n\t\n"])
@pytest.mark.parametrize("name", ["test.txt", "test.jsonl", "other.txt"])
def test_empty_text(folder, content, name):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.* is empty or blank"):
        texts.load(name)


@pytest.mark.parametrize("name", ["test.txt", "test.jsonl"])
def test_not_utf8_names_the_byte(folder, name):
    (folder / name).write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8: byte 0xe9 at offset 3"):
        texts.load(name)


@pytest.mark.parametrize(
    "bad, said",
    [
        ('{"text": "cut', "is not JSON"),
        ("[1, 2]", "is a list"),
        ('{"text": 3}', "has no text in its field 'text'"),
        ('{"other": "a"}', "has no text in its field 'text'"),
    ],
)
def test_malformed_jsonl_names_the_line(folder, bad, said):
    (folder / "test.jsonl").write_text('{"text": "fine"}\n\n' + bad + "\n")
    with pytest.raises(ValueError, match=rf"test\.jsonl line 3 {said}"):
        texts.load("test.jsonl")


def test_jsonl_without_text(folder):
    lines(folder / "test.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(ValueError, match=r"line 1 has the fields question, answer; a text is one of text, content"):
        texts.load("test.jsonl")


def test_parquet_without_text_column(folder):
    pd.DataFrame({"number": [1]}).to_parquet(folder / "test.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet has the fields number; a text is one of"):
        texts.load("test.parquet")


def test_parquet_whose_text_is_numbers(folder):
    pd.DataFrame({"text": [1, 2]}).to_parquet(folder / "test.parquet")
    with pytest.raises(ValueError, match="keeps no text in its column 'text'"):
        texts.load("test.parquet")


def test_parquet_that_is_none(folder):
    (folder / "test.parquet").write_bytes(b"PAR1 nothing more")
    with pytest.raises(ValueError, match="no readable parquet"):
        texts.load("test.parquet")


def test_unknown_ending(folder):
    (folder / "test.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"ends in '\.csv'; texts are \.txt, \.jsonl, \.parquet"):
        texts.load("test.csv")


@pytest.mark.parametrize("name", ["wikitext3", "", "nowhere/at/all.txt"])
def test_unknown_text(folder, name):
    (folder / "shakespeare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither known nor a file.*one of alpaca, c4, packaged, shakes"):
        texts.load(name)


def test_unknown_split():
    with pytest.raises(ValueError, match="split='tests' is unknown; choose one of test, train, valid; did you mean"):
        texts.load("packaged", "tests")


# ---------------------------------------------------------------- real data


@real
def test_real_wikitext_is_the_file_and_survives_the_hubs_form(monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(REAL))
    loaded = texts.load("wikitext2", "test")
    assert loaded.text.encode() == (REAL / "wikitext2" / "test.txt").read_bytes()
    rows = [line if line.strip() else "" for line in loaded.text.splitlines(keepends=True)]
    assert hub.join_lines(rows) == loaded.text


@real
@pytest.mark.parametrize("name", ["wikitext2", "c4", "tinyshakespeare", "novels_en"])
def test_real_texts_have_a_training_split(monkeypatch, name):
    monkeypatch.setenv("THIMBLE_DATA", str(REAL))
    if not (data() / name).is_dir():
        pytest.skip(f"THIMBLE_DATA has no {name}")
    documents, origin = readers.documents(texts._local(name), "train")
    assert sum(map(len, documents)) > 100_000 and origin.startswith(f"$THIMBLE_DATA/{name}/")


HALF = '{"text": "whole"}\n\n{"text": "cut \\ud83d"}\n'


def test_half_an_emoji_in_a_file_is_refused_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    (tmp_path / "train.jsonl").write_text(HALF)
    with pytest.raises(ValueError, match=r"train\.jsonl line 3 holds half a character, '\\ud83d', at place"):
        texts.load("train.jsonl", "train")
    (tmp_path / "train.jsonl").write_text('{"text": "whole \\ud83d\\ude00, a \\u0000 and \\ufffd"}\n')
    assert texts.load("train.jsonl", "train").text == "whole \U0001f600, a \0 and \ufffd"
    with pytest.raises(ValueError, match=r"document 1 of 'mine' holds half a character, '\\udc00', at place 2"):
        texts.Text("mine", "test", ["fine", "ab\udc00"])


def test_half_an_emoji_in_a_tasks_data_is_refused_with_its_line(tmp_path, monkeypatch):
    from lib.sources import prompts, tasks

    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    path = tmp_path / tasks.BENCHMARKS["gsm8k"].files["test"][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"question": "a", "answer": "#### 1"}\n{"question": "\\ud83d", "answer": "#### 1"}\n')
    with pytest.raises(ValueError, match=r"line 2 holds half a character"):
        tasks.load("gsm8k", "test")
    path = tmp_path / prompts.KINDS["chat"].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"instruction": "say \\ud83d", "input": ""}\n')
    with pytest.raises(ValueError, match=r"line 1 holds half a character"):
        prompts.load("chat", 1, source="data")


def test_bytes_in_parquet_that_are_not_utf8_are_named(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    array = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    )
    parquet.write_table(pyarrow.table({"text": array}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet keeps bytes that are not UTF-8 in its column 'text'"):
        texts.load("train.parquet", "train")


@pytest.mark.parametrize("name", ["a\0b.txt", "n" * 300, "cut \ud83d"])
def test_a_path_that_cannot_be_is_no_text_and_no_file(name, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    for given in (name, str(tmp_path / name)):
        with pytest.raises(FileNotFoundError, match="is neither known nor a file"):
            texts.load(given)
    with pytest.raises(FileNotFoundError, match="is no file; the path of a Python file is allowed"):
        extensions.load(tmp_path / f"{name}.py", "FORM")
