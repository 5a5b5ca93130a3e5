"""Token ids of a text in a file that is mapped into memory: made once, whole or absent, named by what it is made of.

`ids.bin` holds the ids as little-endian uint32; `about.json`, written last, says of which text and rules they are: by
the hash of the text's content, which each load reads anew, and of the tokenizer's rules as they are. The files take
four bytes a token in `data/cache/tokens`, which may be deleted at any time; where the disk is short, those that were
asked for longest ago give way. A killed process leaves nothing that is taken for whole; the next one begins anew.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tokenizers

from lib import files, progress, tokenization
from lib.folders.turns import locked
from lib.sources import chunks, streams

TYPE = np.dtype("<u4")
RULE = "the joined text without special tokens; windows add those that the tokenizer puts before a text"
APART = "each document without special tokens, and the end token behind it"
_SPARE = 1.25  # how many more tokens than its first part lets expect a text may have
_SUFFIX = ".tmp"
_compared: set[tuple] = set()  # files whose bytes were compared with their hash


def mapped(text, tokenizer, **sizes) -> np.memmap:
    """All token ids of `text` [tokens], read-only, from its file in the cache, which is made where there is none.

    text: a `texts.Text` whose documents are streamed. tokenizer: one whose rules are written down
    (`tokenization.is_written_down`). sizes: of `chunks.ids`. Several processes at once make it once. Raises OSError
    where the disk is too small, ValueError where the files of the text have changed since it was loaded.
    """
    return _mapped(text, tokenizer, {"special_tokens": RULE}, lambda: chunks.ids(tokenizer, _checked(text), **sizes))


def of_documents(text, tokenizer, end: int, **sizes) -> np.memmap:
    """As `mapped`, of each document of `text`, in memory or streamed, for itself, with the token `end` behind it.

    Where a document says `end` itself, it ends there.
    """
    about = {"special_tokens": APART, "end": end, "documents": _borders(text)}
    return _mapped(text, tokenizer, about, lambda: chunks.of_documents(tokenizer, text.documents, end, **sizes))


def _mapped(text, tokenizer, rules: dict, found: Callable[[], Iterable[tuple]]) -> np.memmap:
    about = {"text": text.sha256, "tokenizer": tokenization.identity(tokenizer), **rules}
    about |= {"dtype": TYPE.str, "tokenizers": tokenizers.__version__, "format": 2}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    folder = files.cache() / "tokens" / name
    if (there := _known(folder, about)) is not None:
        return there
    files.check_writable(folder / "ids.bin")
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder):
        if (there := _known(folder, about)) is None:
            made = _write(folder / "ids.bin", text, found())
            files.write_text(folder / "about.json", json.dumps({**about, **made}, indent=1))
            there = _known(folder, about)
    if there is None:
        raise OSError(
            f"{files.place(folder)} is not what was written there; another program changed it; delete it and try again."
        )
    return there


def _borders(text) -> str:
    """Hexadecimal SHA-256 of the lengths of the documents of a text."""
    digest = hashlib.sha256()
    for document in streams.in_pieces(text.documents):
        digest.update(f"{sum(map(len, document))} ".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes in `folder`, and remove what a killed process left; no more where locks fail."""
    try:
        with locked(folder, wait=False):
            alone = True
    except OSError:  # somebody writes, or the disk knows no locks: then both write, and the last one stays
        alone = False
    with locked(folder):
        for leftover in folder.glob(f".*{_SUFFIX}") if alone else ():
            leftover.unlink(missing_ok=True)
        yield


def _known(folder: Path, about: dict) -> np.memmap | None:
    """The ids that lie in `folder`, whole and of this very text and tokenizer; None where they do not.

    Their bytes are compared with their hash once in a process.
    """
    path = folder / "ids.bin"
    try:
        said, state = json.loads((folder / "about.json").read_text()), path.stat()
        whole = state.st_size == said["tokens"] * TYPE.itemsize > 0
        if not whole or said != {**about, "tokens": said["tokens"], "sha256": said["sha256"]}:
            return None
        version = str(path), state.st_ino, state.st_mtime_ns, said["sha256"]
        if version not in _compared and files.sha256(path) != said["sha256"]:
            return None
        _compared.add(version)
        with contextlib.suppress(OSError):  # a disk that is only read
            os.utime(folder / "about.json")  # who asked last; `_make_room` goes by it
        return np.memmap(path, TYPE, "r")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_room(folder: Path, needed: int) -> None:
    """Delete the tokens that were asked for longest ago until the disk has `needed` bytes; they can be made again.

    A process that reads them goes on: what is mapped stays until nobody uses it.
    """
    with contextlib.suppress(OSError):  # of folders that others delete at the same time
        others = sorted(folder.parent.glob("*/about.json"), key=lambda path: path.stat().st_mtime_ns)
        for other in (about.parent for about in others if about.parent != folder):
            if shutil.disk_usage(folder).free >= needed:
                return
            with contextlib.suppress(OSError), locked(other, wait=False):
                shutil.rmtree(other)


def _write(path: Path, text, found: Iterable[tuple[np.ndarray, int]]) -> dict:
    """Write ids through a temporary name and rename it; answers their number and the hash of their bytes."""
    temporary, count = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_SUFFIX}"), 0
    digest = hashlib.sha256()
    try:
        with open(temporary, "xb") as file, progress.bar(total=text.characters, desc="tokens", unit="B") as bar:
            for some, done in found:
                if not count:
                    needed = int(_SPARE * TYPE.itemsize * len(some) * text.characters / done)
                    _make_room(path.parent, needed)
                    files.check_writable(path, needed)
                content = some.astype(TYPE).tobytes()
                file.write(content)
                digest.update(content)
                count += len(some)
                bar.update(done - bar.n)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if not count:
        raise ValueError(f"{text.name}/{text.split} has no tokens; a text needs words; choose another file or split.")
    return {"tokens": count, "sha256": digest.hexdigest()}


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
