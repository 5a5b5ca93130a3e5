"""Locks on folders: writers of one place take turns, and readers see one version of it."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

TRIES = 20  # at a place where others write without the lock, which some network disks lack
_reading = threading.local()


def unchanged(folder: Path | str, read: Callable):
    """The result of `read()` for one version of `folder`: it reads again if a writer replaced the folder meanwhile."""
    if getattr(_reading, "now", False):  # by a caller, who looks after it
        return read()
    _reading.now, folder = True, Path(os.path.realpath(folder))
    try:
        for attempt in range(TRIES):
            with locked(folder.parent, shared=True) if attempt else contextlib.nullcontext():
                before, last = _version(folder), attempt == TRIES - 1
                try:
                    found = read()
                except Exception:
                    if last or (_version(folder) == before and (before or attempt)):
                        raise
                    continue
                if last or _version(folder) == before:
                    return found
    finally:
        _reading.now = False


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold a lock on an existing folder, released when the process ends, however it ends.

    Without `wait`, raises OSError when another process has it or the disk supports no locks; with it, continues without
    a lock on such a disk.
    """
    handle = None
    try:
        with contextlib.nullcontext() if not wait else contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _version(folder: Path) -> tuple | None:
    with contextlib.suppress(OSError):
        state = os.stat(folder)
        return state.st_dev, state.st_ino, state.st_ctime_ns, state.st_mtime_ns
    return None
