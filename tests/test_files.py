"""Files and folders are complete or absent, and what can't work is refused before the work."""

import shutil

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
