"""Where models and texts come from, and the list of what this process has loaded."""

import os
from pathlib import Path

from lib import files

_used: list[dict] = []


def note(*, kind: str, name: str, origin: str, sha256: str, split: str | None = None) -> None:
    """Add what was loaded to `used()`; loading the same thing again adds nothing."""
    entry = {"kind": kind, "name": name, "split": split, "origin": origin, "sha256": sha256}
    if entry not in _used:
        _used.append(entry)


def used() -> list[dict]:
    """What this process has loaded, in order: dicts of kind ("model", "text", ...), name, split, origin and sha256."""
    return [dict(entry) for entry in _used]


def place(path: Path | str) -> str:
    """`path` as records and notebooks show it: relative to the repository or to `$THIMBLE_DATA` where it lies there.

    Elsewhere the user's own folder is shortened to `~`.
    """
    path = Path(os.path.abspath(path))
    for base, shown in ((files.home(), ""), (files.ROOT, ""), (data(), "$THIMBLE_DATA/"), (Path.home(), "~/")):
        if base is not None and path.is_relative_to(os.path.abspath(base)):
            return shown + path.relative_to(os.path.abspath(base)).as_posix()
    return str(path)


def data() -> Path | None:
    """The folder of local texts that the environment variable `THIMBLE_DATA` names, None where it is unset."""
    named = os.environ.get("THIMBLE_DATA")
    return Path(named).expanduser() if named else None
