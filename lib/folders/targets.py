"""Checks, before the work, where a folder may be written, and refuses other places with a reason."""

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from lib import files
from lib.folders import manifest
from lib.folders.turns import unchanged

_MOUNTS = Path("/proc/self/mountinfo")
_SHOWN = 5  # names in an error


def real(path: Path | str) -> Path:
    """The absolute path of `path`: `~`, links, `.`, `..` and trailing slashes resolved.

    Raises ValueError for an empty path and those of `files.check_name`, FileNotFoundError for a link whose end can't
    be made.
    """
    if not os.fspath(path).strip():
        raise ValueError(f"the path {os.fspath(path)!r} is empty; it must name a folder; give its name.")
    files.check_name(path)
    given = Path(os.path.abspath(os.path.expanduser(path)))
    found = Path(os.path.realpath(given))
    for part in (given, *given.parents):
        if (
            part.is_symlink()
            and not part.exists()
            and not (part == given and found.parent.is_dir() and not found.is_symlink())
        ):
            raise FileNotFoundError(
                f"{part} is a link to {os.readlink(part)}, which is not there; a link must lead somewhere; make that "
                "folder (is its disk mounted?), or give another path."
            )
    return found


def check(path: Path | str, bytes_needed: int = 0, *, kept: Collection[str] = ()) -> Path:
    """The path at which a folder can be written, or replaced by `folders.replace`; checked before the work.

    kept: as for `replace`. Raises FileExistsError, naming what is there, for anything that the project did not write;
    PermissionError where nothing can be written, below a file for instance; OSError for a mount point, the working
    folder, a folder of the project's own, and a disk without room.
    """
    target = real(path)
    if target in (*_own(), Path(target.anchor)):
        raise OSError(f"{path} is a folder that holds others ({target}); it is never replaced; give a folder in it.")
    for parent in target.parents:
        if os.path.lexists(parent) and not parent.is_dir():
            raise PermissionError(f"{path} cannot be written: {parent} is a file; choose a folder elsewhere.")
    if os.path.lexists(target):
        unchanged(target, lambda: refuse(path, target, kept))
    files.check_folder(target.parent, path, bytes_needed)
    return target


def refuse(path: Path | str, target: Path, kept: Collection[str] = ()) -> None:
    """Raise the errors of `check` unless `target` (`path` as it was given) may be replaced."""
    if not target.is_dir():
        raise FileExistsError(f"{path} is a file; a folder is to be written there; choose another name, or move it.")
    with contextlib.suppress(FileNotFoundError):
        if Path.cwd() == target or target in Path.cwd().parents:
            raise OSError(f"{path} is the folder you work in ({target}), and can't be replaced; give a folder in it.")
    if os.path.ismount(target) or target in _mounted():
        raise OSError(f"{path} is a mount point ({target}), and can't be replaced; give a folder in it.")
    if not os.access(target, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(f"{path} is another user's ({target}), or protected; choose a folder that you own.")
    found = manifest.foreign(target, kept)
    if not found:
        return
    shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    if manifest.ours(target) is None:
        why = "is a folder that the project did not write; it holds"
    else:
        why = "holds more than the project wrote there:"
    raise FileExistsError(
        f"{path} {why} {shown}; only a folder with nothing but unchanged files of the project's own is replaced; "
        "choose another name, or move those elsewhere first."
    )


def _own() -> set[Path]:
    """The project's and the user's own folders, which hold more than one model and must not be replaced."""
    places = (files.ROOT, files.home(), files.home() / "data", files.checkpoints(), files.results())
    places += (files.figures(), files.report(), files.cache(), Path.home())
    return {Path(os.path.realpath(place)) for place in places}


def _mounted() -> set[Path]:
    """Mount points as Linux lists them: those of one disk's folder at another place look like ordinary folders."""
    with contextlib.suppress(OSError):
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
        return {Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])) for line in lines}
    return set()
