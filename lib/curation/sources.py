"""Documents of files: `.jsonl`, `.parquet`, and WARC as Common Crawl writes it (`web_archive`).

A row's text is in its field `text` (`content`, ...: `file_formats.FIELDS`), its id in `id`, and all its other fields
are its metadata. Each file is a shard; shards are read in order of their paths, one document at a time. What can't be
read is named by file and line.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from lib import files, tokenization
from lib.curation import web_archive
from lib.curation.document import Document, text_id
from lib.files import place
from lib.sources import file_formats

ROWS = (".jsonl", ".parquet")
ENDINGS = (*ROWS, *web_archive.ENDINGS)
_OWN = {"id", "text", "metadata"}  # the fields of a document that was written by `Document.line`


class Shards:
    """The documents of files, which are read anew each time somebody goes through them.

    source: a file, a folder (its files with a known ending, in order of their names), or several files. text, id: the
    fields that hold them, where they have other names. Raises FileNotFoundError where there is no such file,
    ValueError for files of another kind; going through them raises ValueError for what can't be read.
    """

    def __init__(self, source: Path | str | Iterable[Path | str], *, text: str | None = None, id: str = "id"):
        self.paths, self.text, self.id = _paths(source), text, id

    def __iter__(self) -> Iterator[Document]:
        return (document for _, document in self.places())

    def places(self) -> Iterator[tuple[str, Document]]:
        """("FILE line N", document) of each."""
        for path in self.paths:
            yield from read(path, text=self.text, id=self.id)

    def each(self) -> list["Shards"]:
        """One for each file."""
        return [Shards([path], text=self.text, id=self.id) for path in self.paths]


@dataclass(frozen=True)
class Inventory:
    """What was found in shards that are whole: documents of each, and bytes of all their lines."""

    documents: list[int]
    bytes: int


def read(path: Path, *, text: str | None = None, id: str = "id") -> Iterator[tuple[str, Document]]:
    """("FILE line N", document) of each row or record of a file; ValueError names a row without text."""
    if not path.name.endswith(ROWS):
        yield from web_archive.read(path)
        return
    field = text
    for where, row in file_formats.records(path):
        field = field or file_formats.field_of(row, where)
        if not isinstance(row.get(field), str):
            raise ValueError(f"{where} has no text in its field {field!r}; every row needs it; mend or drop it.")
        yield where, _document(row, field, id, where)


def write(documents: Iterable[Document], folder: Path | str, shards: int = 1) -> Shards:
    """Write documents into `shards` new files of a folder, in turns."""
    held = list(documents)
    for number in range(shards):
        lines = "".join(document.line() + "\n" for document in held[number::shards])
        files.write_text(Path(folder) / f"{number:05d}.jsonl", lines)
    return Shards(folder)


def check(shards: Shards) -> Inventory:
    """Read all once, before the work; ValueError for what can't be read, and for an id that two texts have.

    Ids and texts are held as hashes, 16 bytes a document.
    """
    counts, size, ids, texts = [], 0, [], []
    for shard in shards.each():
        counts.append(0)
        for document in shard:
            counts[-1] += 1
            size += len(document.line().encode()) + 1
            ids.append(xxhash.xxh3_64_intdigest(document.id.encode()))
            texts.append(xxhash.xxh3_64_intdigest(document.text.encode()))
    found = np.array([ids, texts], np.uint64)
    pairs = np.unique(found, axis=1)  # each id with each of its texts, in order of ids
    twice = pairs[0][1:][pairs[0][1:] == pairs[0][:-1]]
    if len(twice):
        _refuse(shards, int(twice[0]))
    return Inventory(counts, size)


def _refuse(shards: Shards, id: int) -> None:
    first = None
    for where, document in shards.places():
        if xxhash.xxh3_64_intdigest(document.id.encode()) != id:
            continue
        first = first or (where, document)
        if document.text != first[1].text:
            raise ValueError(
                f"{first[0]} and {where} both have the id {document.id!r} and differ in their texts; an id names one "
                "text; rename one, or leave the ids out and let the texts name themselves."
            )


def _document(row: dict, field: str, id: str, where: str) -> Document:
    text, named = row[field], row.get(id)
    tokenization.check(text, where)
    if named is not None and not isinstance(named, (str, int)):
        raise ValueError(f"{where} has {named!r} as its {id!r}; an id is a text or a whole number; mend it.")
    rest = {name: value for name, value in row.items() if name not in (field, id)}
    known = rest["metadata"] if set(row) == _OWN and isinstance(row["metadata"], dict) else rest
    known = json.loads(json.dumps(known, default=str))  # of Parquet: dates and the like, as text
    return Document(text, text_id(text) if named is None else str(named), known)


def _paths(source) -> list[Path]:
    several = not isinstance(source, (str, Path))
    paths = [Path(each).expanduser() for each in (source if several else [source])]
    if not several and paths[0].is_dir():
        paths = sorted(path for path in paths[0].iterdir() if path.name.endswith(ENDINGS))
        if not paths:
            raise FileNotFoundError(
                f"{place(source)} has no file that ends in {', '.join(ENDINGS)}; shards are such files; name some."
            )
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{place(path)} is no file; a shard is one; look where it lies.")
        if not path.name.endswith(ENDINGS):
            raise ValueError(f"{place(path)} is no shard; one ends in {', '.join(ENDINGS)}; convert it.")
    return sorted(paths)
