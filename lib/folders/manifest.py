"""manifest.json: the SHA-256 of every file in a folder that the project wrote, and whether they still match.

Only such folders are ever replaced: what is not listed, or has changed since, is somebody else's work.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path

from lib import files

NAME = "manifest.json"
WRITER = "thimble"
UNFINISHED = ".thimble-unfinished"  # lies in folders of ours that are being written or deleted
_KINDS = ("plain", "pack-quantized", "peer")  # manifests of earlier versions, which do not name their writer
_DIGITS = set("0123456789abcdef")
_read: dict[tuple, str] = {}  # SHA-256 of the files that this process has read


def write(folder: Path | str, **origin) -> Path:
    """Write `manifest.json`: the SHA-256 of every file in and below `folder`, and what else `origin` says about it."""
    folder = Path(folder)
    hashes = {name: sha256(folder / name) for name in names(folder)}
    return files.write_text(folder / NAME, json.dumps({**origin, "files": hashes}, indent=1))


def seal(folder: Path, **origin) -> None:
    """Write the manifest that marks a folder as the project's; entries of an earlier one are kept."""
    noted = json.loads((folder / NAME).read_bytes()) if (folder / NAME).is_file() else {}
    noted.pop("files", None)
    write(folder, **{**noted, **origin, "written_by": WRITER})


def names(folder: Path) -> list[str]:
    """The files in and below `folder` but for the manifest, as relative paths with forward slashes, in order."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for path in found if (name := path.relative_to(folder).as_posix()) not in (NAME, UNFINISHED)]


def sha256(path: Path | str) -> str:
    """SHA-256 of a file; read once per process as long as it is the same file with the same size and times."""
    state = Path(path).stat()
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _read:
        _read[key] = files.sha256(path)
    return _read[key]


def named(content: dict) -> bool:
    """Whether the `content` of a manifest says that the project wrote it."""
    return content.get("written_by") == WRITER or content.get("kind") in _KINDS or "gguf_sha256" in content


def is_list(listed) -> bool:
    """Whether this is what a manifest lists: name -> hexadecimal SHA-256."""
    whole = isinstance(listed, dict) and all(isinstance(each, str) for each in listed.values())
    return whole and all(len(each) == 64 and set(each) <= _DIGITS for each in listed.values())


def ours(folder: Path) -> dict[str, str] | None:
    """name -> SHA-256 of the files that the project wrote into `folder`; None without a manifest of the project."""
    try:
        content = json.loads((folder / NAME).read_bytes())
        listed = content["files"]
        return listed if named(content) and is_list(listed) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def begun(folder: Path) -> bool:
    """Whether the mark of an unfinished folder lies there: an empty file; any other of its name is somebody else's."""
    path = folder / UNFINISHED
    return path.is_file() and not path.is_symlink() and path.stat().st_size == 0


def foreign(folder: Path, kept: Collection[str] = ()) -> list[str]:
    """Files in `folder` that the project did not write, or that have changed since; none for an empty folder.

    kept: names of the files of a kind of folder that has no manifest; a folder with no others is ours.
    """
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if all(entry.name in kept and entry.is_file(follow_symlinks=False) for entry in entries):
        return []
    listed = ours(folder)
    if listed is None:
        return [entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries]
    within = {parent.as_posix() for name in listed for parent in Path(name).parents}
    found = []
    for base, folders, others in os.walk(folder):
        at = Path(base)
        for each in list(folders):
            name = (at / each).relative_to(folder).as_posix()
            if name not in within or (at / each).is_symlink():
                found.append(name + "/" * (not (at / each).is_symlink()))
                folders.remove(each)
        for each in others:
            name = (at / each).relative_to(folder).as_posix()
            if name == NAME or (name == UNFINISHED and begun(folder)):
                continue
            if (how := _other(at / each, listed.get(name))) is not None:
                found.append(name + how)
    return sorted(found)


def _other(path: Path, expected: str | None) -> str | None:
    """How a file differs from the written one: "" where none was written, None where it does not differ."""
    if expected is None or path.is_symlink() or not path.is_file():
        return ""
    return None if sha256(path) == expected else " (changed since it was written)"
