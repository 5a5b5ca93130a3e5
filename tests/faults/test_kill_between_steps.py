"""SIGKILL before every step with which a folder takes its place: old or new is there, whole, and no other is lost."""

import multiprocessing
import os
import shutil
import signal
import time

import pytest

from lib import folders
from lib.folders import manifest, renames

STEPS = (
    (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "replace"), (renames, "exchange"),
    (shutil, "rmtree"), (folders, "_sync_folder"), (manifest, "seal"),
)  # fmt: skip


def write(path, text):
    with folders.replace(path) as unfinished:
        for name in ("a", "b", "part/c"):
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text)


def killed(path, exchanged, at):
    """Replace a folder, and die before step number `at`."""
    left = [at]

    def dying(step):
        def instead(*given, **named):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return step(*given, **named)

        return instead

    for module, name in STEPS:
        setattr(module, name, dying(getattr(module, name)))
    if not exchanged:
        renames._renameat2 = lambda: None
    write(path, "new")


@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("there", ["nothing", "a folder of ours"])
def test_every_step(tmp_path, monkeypatch, exchanged, there):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing that the system has
    processes = multiprocessing.get_context("fork")
    seen, at, ended = set(), 0, False
    while not ended:
        place = tmp_path / f"{at}"
        place.mkdir()
        (place / ".it.notes.tmp").mkdir()
        (place / ".it.notes.tmp" / "thesis").touch()
        if there != "nothing":
            write(place / "it", "old")
        process = processes.Process(target=killed, args=(place / "it", exchanged, at))
        process.start()
        process.join(60)
        ended = process.exitcode == 0
        assert ended or process.exitcode == -signal.SIGKILL
        folders.recover(place / "it")
        seen.add(whole(place / "it"))
        for path in place.iterdir():  # the next writer clears up, a while later, what is not the user's
            os.utime(path, (time.time() - 2 * folders.GRACE,) * 2)
        write(place / "it", "last")
        assert whole(place / "it") == "last"
        assert sorted(path.name for path in place.iterdir()) == [".it.notes.tmp", "it"]
        assert (place / ".it.notes.tmp" / "thesis").exists()
        at += 1
    assert at > 8 and seen == ({None, "new"} if there == "nothing" else {"old", "new"})


def whole(folder):
    """The text of which all files of the folder are, as its manifest says; None where there is no folder."""
    if not folder.exists():
        return None
    assert not manifest.foreign(folder) and set(manifest.ours(folder)) == {"a", "b", "part/c"}
    (text,) = {(folder / name).read_text() for name in manifest.ours(folder)}
    return text
