"""Locks on folders: writers of one place take turns, and readers see one version of it.

A job that keeps its state in a folder has the folder to itself, by a lock on a file in it (`Alone`).
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

TRIES = 20  # at a place where others write without the lock, which some network disks lack
LOCK = ".lock"
_reading = threading.local()


class _Locks(threading.local):
    """What this thread has locked: (process, disk, file) -> (handle, kind of lock)."""

    def __init__(self):
        self.held: dict[tuple[int, int, int], tuple[int, int]] = {}


_locks = _Locks()
_turns: dict[tuple[int, int], "_Shared"] = {}  # what this process holds, by disk and file
_changing = threading.RLock()  # the collector may end one while another begins


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

    A thread that has it may take it again inside, as one does that writes a folder within a folder that it is writing.
    Without `wait`, raises OSError when anybody has it, this thread included, or the disk supports no locks; with it,
    continues without a lock on such a disk.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.nullcontext() if not wait else contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            _lock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait, stack)
        yield


def _lock(handle: int, kind: int, wait: bool, stack: contextlib.ExitStack) -> None:
    """Lock the folder open at `handle` until `stack` ends, unless this thread, which would wait, has it as tightly."""
    state, held = os.fstat(handle), _locks.held
    key = os.getpid(), state.st_dev, state.st_ino
    mine = held.get(key)
    first, before = mine if mine and wait else (handle, fcntl.LOCK_UN)
    if before in (fcntl.LOCK_EX, kind):
        return
    fcntl.flock(first, kind | (0 if wait else fcntl.LOCK_NB))
    stack.callback(fcntl.flock, first, before)  # a handle that a forked child has too keeps its lock when it is closed
    held[key] = first, kind
    stack.callback(held.update, {key: mine}) if mine else stack.callback(held.pop, key)


class Alone:
    """Work in an existing folder that nobody else may do at once, until `end`, or the end of this object or process.

    The same thread may take it again, as a cell that is run again after an error does. Raises BlockingIOError where
    another process or thread has it; a disk without locks, or on which nothing can be written, has none.
    """

    def __init__(self, folder: Path | str):
        self._shared = None
        with contextlib.suppress(PermissionError, IsADirectoryError):
            handle = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            with _changing:
                self._shared = _held(handle, folder)

    def end(self) -> None:
        """Let others work there; a second call changes nothing."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        with _changing:
            shared.holders -= 1
            if shared.holders == 0 and shared.process == os.getpid():
                _turns.pop(shared.key, None)
                with contextlib.suppress(OSError):
                    fcntl.flock(shared.handle, fcntl.LOCK_UN)  # else a child that was forked meanwhile would hold it
                os.close(shared.handle)

    __del__ = end


class _Shared:
    """A lock that this process holds. thread: the one that works under it; holders: how many times."""

    def __init__(self, handle: int, key: tuple[int, int]):
        self.handle, self.key, self.holders = handle, key, 1
        self.thread, self.process = threading.current_thread(), os.getpid()


def _held(handle: int, folder) -> _Shared:
    """What is held by the file open at `handle`, locked now or by this thread before; with one holder more."""
    state = os.fstat(handle)
    key = state.st_dev, state.st_ino
    mine, here = _turns.get(key), threading.current_thread()
    if mine is not None and mine.process == os.getpid() and (mine.thread is here or not mine.thread.is_alive()):
        os.close(handle)
        mine.thread, mine.holders = here, mine.holders + 1
        return mine
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(
            f"{folder} is in use: another process or thread does its job there; one at a time is allowed; wait until "
            "it has ended, end it, or give another folder."
        ) from None
    except OSError:  # a disk without locks
        pass
    found = _turns[key] = _Shared(handle, key)
    return found


def _version(folder: Path) -> tuple | None:
    with contextlib.suppress(OSError):
        state = os.stat(folder)
        return state.st_dev, state.st_ino, state.st_ctime_ns, state.st_mtime_ns
    return None
