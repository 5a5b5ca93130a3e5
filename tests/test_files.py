"""Files and folders are complete or absent, and what can't work is refused before the work."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib import files


def test_a_file_is_written_whole_and_replaced_whole(tmp_path):
    path = files.write_text(tmp_path / "new" / "a.txt", "first")
    files.write_text(path, "zweite ü")
    assert path.read_text(encoding="utf-8") == "zweite ü" and list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_end_of_a_link_is_written_and_the_link_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.txt").symlink_to("disk/far.txt")
    for text in ("first", "second"):
        assert files.write_text(tmp_path / "a.txt", text) == tmp_path / "a.txt"
        assert (tmp_path / "a.txt").is_symlink() and (tmp_path / "disk" / "far.txt").read_text() == text
    assert len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.parametrize("links", [True, False])
def test_of_several_first_writers_one_wins(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: files.write_first(tmp_path / "a.txt", f"{number}"), range(8)))
    assert sum(found) == 1 and (tmp_path / "a.txt").read_text() == str(found.index(True))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"cannot be written .*; choose a folder that you own"):
        files.check_writable(tmp_path / "file" / "below")
    files.check_writable(tmp_path / "not" / "yet" / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5 * 10**6, 5 * 10**6)
    )
    with pytest.raises(OSError, match="needs 270 MB and its disk has 5 MB free"):
        files.check_writable(tmp_path / "model", 270 * 10**6)


def test_sha256_and_choices(tmp_path):
    path = files.write_bytes(tmp_path / "a", b"abc")
    assert files.sha256(path).startswith("ba7816bf8f01cfea")
    assert files.choices("gtpq", ["rtn", "gptq"]) == "choose one of gptq, rtn; did you mean 'gptq'?"
    assert files.choices("zzz", ["rtn"]) == "choose one of rtn."


def test_folders_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    for folder in (files.checkpoints, files.results, files.figures, files.report, files.cache):
        assert tmp_path in folder().parents
    monkeypatch.delenv("THIMBLE_HOME")
    assert files.home() == files.ROOT
