"""Resolves a name or a path to a folder."""

import os
from pathlib import Path

from lib import files, folders
from lib.files import place


def find(name: Path | str) -> Path | None:
    """The existing folder for `name`, None where there is none.

    A bare name is looked up in `checkpoints/`, then in the working folder, then in the repository; which one was
    taken is said where several are there. A path (absolute, with a slash, or with a dot or ~ at its beginning, or a
    `Path`) is that path; one like `checkpoints/x`, without . or ~, is also looked for from the repository on.
    """
    found: list[Path] = []
    for path in _meant(name):
        if not os.path.isdir(path):
            folders.recover(path)  # a save that was killed between its two renames
        if os.path.isdir(path) and is_path(name):
            return Path(os.path.abspath(path))
        if os.path.isdir(path) and not any(path.samefile(other) for other in found):
            found.append(Path(os.path.abspath(path)))
    if len(found) > 1:
        taken, *others = (place(each) for each in found)
        print(f"{name}: {taken} is taken; {' and '.join(others)} is there too, which its path chooses")
    return found[0] if found else None


def is_path(name: Path | str) -> bool:
    """Whether `name` is a path rather than a bare name."""
    return isinstance(name, Path) or os.sep in name or name[:1] in (".", "~")


def _meant(name: Path | str) -> list[Path]:
    text = os.fspath(name)
    if not text or "\0" in text:
        return []
    path = Path(os.path.expanduser(text))
    if not is_path(name):
        return [files.checkpoints() / text, path, files.home() / text]
    return [path] if path.is_absolute() or text[0] in ".~" else [path, files.home() / path]
