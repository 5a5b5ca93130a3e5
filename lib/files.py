"""Where files live, and atomic writes: a file is complete or absent. `folders` does the same for whole folders."""

import contextlib
import difflib
import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASIDE = len(".") + len(".0123abcd.tmp")  # bytes by which the name of what is not finished is longer
_WITHIN = 256  # bytes of a path that are left for what is written into a folder
_MOST = {"PC_NAME_MAX": 255, "PC_PATH_MAX": 4096}  # bytes, where the system does not tell


def home() -> Path:
    """Folder that holds `data/` and `checkpoints/`: `THIMBLE_HOME`, or the repository itself."""
    return Path(os.environ.get("THIMBLE_HOME", ROOT))


def checkpoints() -> Path:
    """Folder of compressed and trained models, each a sub-folder that is complete or absent."""
    return home() / "checkpoints"


def results() -> Path:
    """Folder of the records, one JSON file per run."""
    return home() / "data" / "results"


def figures() -> Path:
    """Folder of the saved figures (SVG and PNG)."""
    return home() / "data" / "figures"


def report() -> Path:
    """Folder of the HTML report."""
    return home() / "data" / "report"


def cache() -> Path:
    """Folder of recomputable files: machine peaks, sweep state."""
    return home() / "data" / "cache"


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 `text` to `path` through a temporary name: readers see the old file or the new, never a mix."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write `content` to `path` through a temporary name and an fsync, then rename; of a link, the end is written."""
    place = Path(os.path.realpath(path))
    with _temporary(place, content) as temporary:
        os.replace(temporary, place)
    return Path(path)


def write_first(path: Path | str, text: str) -> bool:
    """Write UTF-8 `text` to `path` unless there is a file; of several processes at once, only one gets True."""
    path = Path(path)
    with _temporary(path, text.encode()) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a disk without hard links: not whole at once, but the first
            try:
                with open(path, "xb") as file:
                    file.write(text.encode())
            except FileExistsError:
                return False
    return True


@contextlib.contextmanager
def _temporary(path: Path, content: bytes):
    """Context with a temporary file beside `path` that holds `content`, synced to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_writable(path: Path | str, bytes_needed: int = 0) -> None:
    """Raise before the work when `path` can't be written, or its disk lacks `bytes_needed` bytes.

    `path` is the file about to be made, or the folder in which files are. Raises PermissionError and OSError, and
    ValueError as `check_name` does.
    """
    check_name(path)
    path = Path(path)
    check_folder(path if path.is_dir() else Path(os.path.realpath(path)).parent, path, bytes_needed)


def check_name(path: Path | str, *, written: bool = True) -> None:
    """Raise ValueError for a path that no file can have: with a NUL, half a character, or longer than its disk allows.

    written: with room for a temporary name beside it, and for files in it.
    """
    given = os.fspath(path)
    shown = repr(given if len(given) <= 80 else f"{given[:40]}...{given[-20:]}")
    try:
        given.encode("utf-8", "strict" if written else "surrogateescape")  # libraries write names in UTF-8
        whole = os.fsencode(os.path.abspath(os.path.expanduser(given)))
    except UnicodeEncodeError:
        whole = b"\0"
    if b"\0" in whole:
        raise ValueError(f"the path {shown} holds a NUL or half a character, which no path has; give another.")
    there = Path(os.fsdecode(whole))
    while not os.path.lexists(there):
        there = there.parent
    *above, last = whole.split(b"/")
    longest, most = max(map(len, above)), len(last) + ASIDE * written
    for found, kind, what in (
        (max(longest, most), "PC_NAME_MAX", "a name" if longest > most else "its last name"),
        (len(whole) + _WITHIN * written, "PC_PATH_MAX", "the whole path"),
    ):
        if found > _limit(there, kind):
            room = ", with room for what is not finished yet" if written else ""
            raise ValueError(
                f"the path {shown} is too long: {what} takes {found} bytes{room}, and the disk allows "
                f"{_limit(there, kind)}; give a shorter one."
            )


def _limit(folder: Path, kind: str) -> int:
    """How many bytes a name, or a path, may have there."""
    with contextlib.suppress(OSError, ValueError):
        if (found := os.pathconf(folder, kind)) > 0:
            return found
    return _MOST[kind]


def check_folder(folder: Path, shown: Path | str, bytes_needed: int = 0) -> None:
    """Try to create a file in `folder`, or in its nearest existing parent; errors name `shown`."""
    folder = Path(folder)
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):  # a nameless file, so that a kill leaves nothing
            pass
    except OSError as error:
        raise PermissionError(f"{shown} cannot be written ({error.strerror}); choose a folder that you own.") from error
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise OSError(
            f"{shown} needs {bytes_needed / 1e6:.0f} MB and its disk has {free / 1e6:.0f} MB free; "
            "free some space or choose another folder."
        )


def choices(given: str, allowed) -> str:
    """The end of an error about a name: what is allowed, and the nearest match when there is one."""
    allowed = sorted(map(str, allowed))
    near = difflib.get_close_matches(str(given), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"choose one of {', '.join(allowed)}{hint}"


def data_hash(tokens) -> str:
    """Hexadecimal SHA-256 of token ids: their shape, and their values as little-endian int64.

    tokens: a tensor, or windows with a `shape` that `blocks()` reads as tensors one after another.
    """
    digest = hashlib.sha256(f"{list(tokens.shape)}".encode())
    for block in tokens.blocks() if hasattr(tokens, "blocks") else (tokens,):
        digest.update(block.detach().cpu().contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def place(path: Path | str) -> str:
    """`path` as records and notebooks show it: relative to the repository or to `$THIMBLE_DATA` where it lies there.

    Elsewhere the user's own folder is shortened to `~`.
    """
    path = Path(os.path.abspath(path))
    for base, shown in ((home(), ""), (ROOT, ""), (data(), "$THIMBLE_DATA/"), (Path.home(), "~/")):
        if base is not None and path.is_relative_to(os.path.abspath(base)):
            return shown + path.relative_to(os.path.abspath(base)).as_posix()
    return str(path)


def data() -> Path | None:
    """The folder of local texts that the environment variable `THIMBLE_DATA` names, None where it is unset."""
    named = os.environ.get("THIMBLE_DATA")
    return Path(named).expanduser() if named else None
