"""Token ids of a text in a file that is mapped into memory: made once, whole or absent, named by what it is made of.

`ids.bin` holds the ids as little-endian uint32; `about.json`, written last, says of which text and rules they are.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lib import files, progress, tokenization
from lib.folders.turns import locked
from lib.sources import chunks

TYPE = np.dtype("<u4")
RULE = "the joined text without special tokens; windows add those that the tokenizer puts before a text"
_SPARE = 1.25  # how many more tokens than its first part lets expect a text may have
_SUFFIX = ".tmp"


def mapped(text, tokenizer, **sizes) -> np.memmap:
    """All token ids of `text` [tokens], read-only, from its file in the cache, which is made where there is none.

    text: a `texts.Text` whose documents are streamed. tokenizer: one whose rules are written down
    (`tokenization.is_written_down`). sizes: of `chunks.ids`. Several processes at once make it once. Raises OSError
    where the disk is too small, ValueError where the files of the text have changed since it was loaded.
    """
    about = {"text": text.sha256, "tokenizer": tokenization.identity(tokenizer), "special_tokens": RULE}
    about |= {"dtype": TYPE.str, "format": 1}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    folder = files.cache() / "tokens" / name
    if (found := _known(folder, about)) is not None:
        return found
    files.check_writable(folder / "ids.bin")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as turn:
        try:
            turn.enter_context(locked(folder, wait=False))
            for leftover in folder.glob(f".*{_SUFFIX}"):  # of a process that was killed: nobody else writes here now
                leftover.unlink(missing_ok=True)
        except OSError:  # somebody writes, or the disk knows no locks: then both write, and the last one stays
            turn.enter_context(locked(folder))
        if (found := _known(folder, about)) is None:
            count = _write(folder / "ids.bin", text, chunks.ids(tokenizer, _checked(text), **sizes))
            files.write_text(folder / "about.json", json.dumps({**about, "tokens": count}, indent=1))
            found = _known(folder, about)
    if found is None:
        raise OSError(
            f"{files.place(folder)} is not what was written there; another program changed it; delete it and try again."
        )
    return found


def _known(folder: Path, about: dict) -> np.memmap | None:
    """The ids that lie in `folder`, whole and of this very text and tokenizer; None where they do not."""
    try:
        said = json.loads((folder / "about.json").read_text())
        if said != {**about, "tokens": said["tokens"]}:
            return None
        if (folder / "ids.bin").stat().st_size != said["tokens"] * TYPE.itemsize or not said["tokens"]:
            return None
        return np.memmap(folder / "ids.bin", TYPE, "r")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, text, found: Iterable[tuple[np.ndarray, int]]) -> int:
    """Write ids through a temporary name and rename it; answers their number."""
    temporary, count = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_SUFFIX}"), 0
    try:
        with open(temporary, "xb") as file, progress.bar(total=text.characters, desc="tokens", unit="B") as bar:
            for some, done in found:
                if not count:
                    files.check_writable(path, int(_SPARE * TYPE.itemsize * len(some) * text.characters / done))
                file.write(some.astype(TYPE).tobytes())
                count += len(some)
                bar.update(done - bar.n)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if not count:
        raise ValueError(f"{text.name}/{text.split} has no tokens; a text needs words; choose another file or split.")
    return count


def _checked(text) -> Iterator[str]:
    """The pieces of a text; ValueError at their end where they are not those that were loaded."""
    digest = hashlib.sha256()
    for piece in text.pieces():
        digest.update(piece.encode())
        yield piece
    if digest.hexdigest() != text.sha256:
        raise ValueError(
            f"the files of {text.name}/{text.split} have changed since they were loaded; a text stays what it was; "
            "load it again."
        )
