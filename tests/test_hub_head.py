"""Any data set of the Hub, through the streaming of `datasets` itself; its files lie in a local folder here."""

import json

import pytest
import zstandard

from lib import files
from lib.sources import hub, texts
from lib.trainers import from_scratch
from tests.test_from_scratch import small

SPARE = " ".join(f"word{number % 37}" for number in range(30))


@pytest.fixture
def hub_of(tmp_path, monkeypatch):
    """A function that puts a data set into the folder where `datasets` finds one called "owner/books"."""
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "revision", lambda name: "0123456789abcdef")

    def put(**splits):
        folder = tmp_path / "owner" / "books"
        folder.mkdir(parents=True, exist_ok=True)
        for split, documents in splits.items():
            lines = (json.dumps({"id": number, "text": text}) for number, text in enumerate(documents))
            (folder / f"{split}.jsonl").write_text("\n".join(lines))

    return put


def test_as_much_as_is_asked_for_is_read_once_and_kept(hub_of, monkeypatch):
    hub_of(train=[f"{number} {SPARE}" for number in range(50)], validation=["", f"unseen {SPARE}"], test=["a"])
    found = texts.load("owner/books", "train", characters=5 * len(SPARE))
    assert found.documents == [f"{number} {SPARE}" for number in range(5)]
    assert found.origin == "Hub owner/books train at 0123456789ab, 5 documents from the start, streamed"
    assert texts.load("owner/books", "valid").documents == [f"unseen {SPARE}"]
    streamed = texts.load("owner/books", "train", characters=5 * len(SPARE), in_memory=0)
    assert streamed.streamed and list(streamed.documents) == found.documents
    monkeypatch.setattr("datasets.load_dataset", None)  # from here on nothing is asked
    again = texts.load("owner/books", "train", characters=5 * len(SPARE))
    assert (again.sha256, again.origin) == (found.sha256, found.origin)


def test_splits_that_are_not_there_are_taken_out_of_train(hub_of):
    hub_of(train=[str(number) for number in range(45)])
    parts = {split: texts.load("owner/books", split).documents for split in ("valid", "test", "train")}
    assert [[*map(int, part)] for part in parts.values()][:2] == [[0, 20, 40], [1, 21, 41]]
    assert sorted(int(each) for part in parts.values() for each in part) == list(range(45))


def test_compressed_shards_in_folders_are_read_as_slimpajama_has_them(hub_of, tmp_path):
    for number, shard in enumerate(("train/chunk1", "train/chunk2", "validation/chunk1", "test/chunk1")):
        folder = tmp_path / "owner" / "books" / shard
        folder.mkdir(parents=True)
        rows = [{"text": f"{shard} {each} é", "meta": {"redpajama_set_name": "RedPajamaC4"}} for each in range(3)]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"example_{number}.jsonl.zst").write_bytes(zstandard.compress(lines))
    read = {split: texts.load("owner/books", split).documents for split in ("train", "valid", "test")}
    assert read["train"] == [f"train/{chunk} {each} é" for chunk in ("chunk1", "chunk2") for each in range(3)]
    assert [len(read[split]) for split in ("valid", "test")] == [3, 3] and read["test"][2] == "test/chunk1 2 é"


def test_a_model_is_trained_on_it(hub_of):
    words = texts.load("packaged", "train").documents
    hub_of(train=words[:40], validation=words[40:50])
    made = from_scratch.corpus(small(tokens=30_000, unseen=4), text="owner/books")
    found = from_scratch.train("plain", made, tokens=8 * 32 * 3)
    assert len(found.history.losses) == 3 and len(made.unseen) == 4
    assert len(made.rows) * 32 < 120_000  # as much as the preset takes, not all that there is


@pytest.mark.parametrize("name", ["owner/books:other", "owner/books"])
def test_what_the_hub_does_not_give_is_said(name, hub_of, monkeypatch):
    hub_of(train=["words"])
    if name == "owner/books":
        monkeypatch.setattr(hub, "revision", lambda name: None)
    with pytest.raises(FileNotFoundError, match=rf"text '{name}' is not there.*Hub did not give it \(.+\).*packaged"):
        texts.load(name, "train")
    assert not list((files.cache() / "hub").glob("*"))


@pytest.mark.parametrize("rows, said", [([{"number": 3}], "has the fields number"), ([{"text": 3}], "has no text in")])
def test_rows_without_text_leave_nothing(rows, said, hub_of, tmp_path):
    hub_of(train=[], validation=["words"], test=["words"])
    (tmp_path / "owner" / "books" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=said):
        texts.load("owner/books", "train")
    assert not list((files.cache() / "hub").glob("*"))


def test_a_full_disk_is_told_before_anything_is_read(hub_of):
    hub_of(train=["words"])
    with pytest.raises(OSError, match=r"needs [\d,]+ .B and its disk has"):
        texts.load("owner/books", "train", characters=1 << 60)
