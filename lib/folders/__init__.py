"""Atomic writing of folders: complete or absent, several writers, and only folders of the project are replaced.

A folder is written under a temporary name beside its target and exchanged with it in one system call. Where the system
has no such call, two renames do it, and `recover` repairs what a kill between them leaves. Writers of one target take
turns: the last one's folder stays, complete. Readers that use `unchanged` see one version.
"""

import contextlib
import errno
import os
import random
import re
import shutil
import stat
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from lib.folders import manifest, renames
from lib.folders.targets import check, real, refuse
from lib.folders.turns import TRIES, locked, unchanged

__all__ = ["check", "locked", "recover", "remove_leftovers", "replace", "unchanged"]

GRACE = 60  # seconds after which an unlocked temporary folder must be that of a killed process


@contextlib.contextmanager
def replace(path: Path | str, *, kept: Collection[str] = (), **origin) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the context ends without an error, and is deleted otherwise.

    It gets a manifest that also holds `origin`. A link at `path` stays, and the folder that it leads to is replaced.
    kept: for a kind of folder without a manifest, the names of all files that it may hold.

    A folder at `path` is replaced if the project wrote it and nothing else is in it. Raises what `targets.check` does,
    before the context, and FileExistsError if something appeared there meanwhile: the new folder is then kept beside
    it, and the error says where.
    """
    recover(path)
    target = check(path, kept=kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target, kept=kept)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    with locked(temporary):
        try:
            (temporary / manifest.UNFINISHED).touch()
            yield temporary
            if not kept:
                manifest.seal(temporary, **origin)
            _settle(temporary)
            _publish(temporary, target, path, kept)
        finally:
            _delete(temporary)  # what was replaced, or what was not finished


def recover(path: Path | str) -> None:
    """Restore the old folder of a replacement that was killed between its two renames, or wait for one in progress."""
    with contextlib.suppress(OSError, ValueError):  # an impossible path, or a read-only disk
        target = real(path)
        if _old(target):
            with locked(target.parent, wait=not target.exists()):
                _mend(target)


def remove_leftovers(target: Path, *, kept: Collection[str] = (), name: str | None = None) -> None:
    """Delete remains of killed writers of `target` beside it; folders being written are locked, others stay.

    name: a regular expression in place of the target's own name.
    """
    pattern = re.compile(rf"\.{name or re.escape(target.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    for path in target.parent.iterdir():
        with contextlib.suppress(OSError):
            if not pattern.fullmatch(path.name) or path.is_symlink() or time.time() - path.stat().st_mtime <= GRACE:
                continue
            with locked(path, wait=False):
                begun = manifest.begun(path)  # to be written, or to be deleted
                if begun or not any(path.iterdir()) or (path.suffix == ".tmp" and not manifest.foreign(path, kept)):
                    _delete(path)


def _publish(temporary: Path, target: Path, path, kept):
    """Move the finished folder to its target, or beside it when that is refused."""
    with locked(target.parent):
        (temporary / manifest.UNFINISHED).unlink()
        for attempt in range(TRIES):
            try:
                _mend(target, kept)
                _put(temporary, target, path, kept)
                break
            except OSError as error:
                if error.errno in renames.BUSY and attempt < TRIES - 1:  # other processes write here without the lock
                    time.sleep(random.uniform(0, 0.1))
                    continue
                spare = next(each for number in range(2, 10**9) if not os.path.lexists(each := _spare(target, number)))
                os.rename(temporary, spare)
                raise type(error)(f"{error} What was to be written is whole in {spare}.") from error
        _sync_folder(target.parent)


def _put(temporary: Path, target: Path, path, kept):
    if not os.path.lexists(target):
        os.rename(temporary, target)
        return
    refuse(path, target, kept)
    shutil.copymode(target, temporary)
    if renames.exchange(temporary, target):
        replaced = temporary

        def back():
            renames.exchange(temporary, target)
    else:
        replaced = target.with_name(temporary.name.removesuffix(".tmp") + ".old")
        os.rename(target, replaced)
        os.rename(temporary, target)

        def back():
            os.rename(target, temporary)
            os.rename(replaced, target)

    if not _all_ours(replaced, kept):  # something appeared between the check and the exchange
        back()
        raise FileExistsError(errno.EEXIST, "it has just changed", str(target))
    if replaced != temporary:
        _delete(replaced)


def _all_ours(folder: Path, kept) -> bool:
    with contextlib.suppress(OSError):
        return not manifest.foreign(folder, kept)
    return False


def _mend(target: Path, kept: Collection[str] = ()):
    """Restore the old folder where there is no new one; otherwise delete it, if all of it is ours."""
    for old in _old(target, kept):
        if not os.path.lexists(target):
            os.rename(old, target)
        elif _all_ours(old, kept):
            _delete(old)


def _old(target: Path, kept: Collection[str] = ()) -> list[Path]:
    """Our folders that replacements of `target` have moved aside, the newest last."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.([0-9a-f]{{8}}\.)?old")
    found = target.parent.iterdir() if target.parent.is_dir() else []
    found = [path for path in found if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    mine = [path for path in found if manifest.ours(path) is not None or (kept and _all_ours(path, kept))]
    return sorted(mine, key=lambda path: path.stat().st_mtime_ns)


def _spare(target: Path, number: int) -> Path:
    return target.with_name(f"{target.name}-{number}")


def _delete(folder: Path):
    """Delete one of our folders, its mark last, so that remains of an interrupted deletion are recognised as ours."""
    with contextlib.suppress(OSError):
        (folder / manifest.UNFINISHED).touch()
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != manifest.UNFINISHED:
                path.unlink(missing_ok=True)
        (folder / manifest.UNFINISHED).unlink(missing_ok=True)
        folder.rmdir()


def _settle(folder: Path):
    """Sync every file in and below `folder` and their names to disk; removes empty folders.

    All files get the permissions of a file that is simply created: safetensors writes for its owner alone.
    """
    mode = (folder / manifest.UNFINISHED).stat().st_mode
    for base, _, names in os.walk(folder, topdown=False):
        if base != str(folder) and not os.listdir(base):
            os.rmdir(base)
            continue
        for name in names:
            with open(Path(base) / name, "rb") as handle:
                if not (Path(base) / name).is_symlink():
                    with contextlib.suppress(OSError):  # a disk without permissions
                        os.fchmod(handle.fileno(), stat.S_IMODE(mode))
                os.fsync(handle.fileno())
        _sync_folder(Path(base))


def _sync_folder(folder: Path):
    with contextlib.suppress(OSError):  # some systems can't, some folders can't be read
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
