"""Documents that stay in their files: they are read anew, piece by piece, each time somebody goes through them."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.files import place
from lib.sources import file_formats

BETWEEN = "\n\n"  # a blank line between two documents


@dataclass(frozen=True)
class Part:
    """What of a file belongs to a text: its documents from `first` up to `last`, of a `.txt` its lines."""

    path: Path
    first: int = 0
    last: int | None = None

    def version(self) -> tuple[int, ...]:
        """What tells the file from one that was written over it or put in its place."""
        state = os.stat(self.path)
        return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns

    def documents(self) -> Iterator[Iterable[str]]:
        """Each document in pieces; blank ones are none, but a `.txt` is one in any case."""
        if self.path.suffix == ".txt":
            yield file_formats.blocks(self.path) if self == Part(self.path) else self._lines()
        else:
            filled = (text for _, text in file_formats.rows(self.path) if text.strip())
            yield from ((text,) for text in itertools.islice(filled, self.first, self.last))

    def _lines(self) -> Iterator[str]:
        number = 0  # of the line in which a block begins
        for block in file_formats.blocks(self.path):
            after = number + block.count("\n")
            if self.first <= number and after < self.last:
                yield block
            elif after >= self.first and number < self.last:
                lines = block.split("\n")
                some = lines[max(0, self.first - number) : self.last - number]
                yield "\n".join(some) + ("\n" if self.last <= after else "")
            if after >= self.last:
                return
            number = after


@dataclass(frozen=True)
class Held:
    """Documents in memory that belong to a text whose others are in files."""

    texts: tuple[str, ...]

    def documents(self) -> Iterator[Iterable[str]]:
        """Each document as one piece."""
        yield from ((text,) for text in self.texts)


@dataclass(frozen=True)
class Scan:
    """What is known of documents that were read once: the hash of the joined text, their number, the characters."""

    sha256: str
    count: int
    characters: int


class Documents:
    """The documents of parts of files in order, without the blank ones; going through them reads the files again.

    parts: whatever has `documents()` that answers each document in pieces. A document may be as large as its file:
    who goes through `in_pieces` holds a piece of it, who goes through the documents themselves holds one whole.
    """

    def __init__(self, *parts):
        self.parts, self._scan, self._versions = parts, None, {}

    def __iter__(self) -> Iterator[str]:
        yield from map("".join, self.in_pieces())

    def __len__(self) -> int:
        return self.scan().count

    def __add__(self, others: Iterable[str]) -> "Documents":
        more = others.parts if isinstance(others, Documents) else (Held(tuple(others)),)
        return Documents(*self.parts, *more)

    def __radd__(self, others: Iterable[str]) -> "Documents":
        return Documents(Held(tuple(others)), *self.parts)

    def pieces(self) -> Iterator[str]:
        """The joined text, a blank line between documents, in pieces of a few million characters at most.

        Only a row of a file that is longer itself makes a longer piece.
        """
        return (piece for piece, _ in self._pieces())

    def scan(self) -> Scan:
        """Read all once, for hash and number; the same object remembers it. Raises ValueError where that fails."""
        if self._scan is None:
            digest, count, characters = hashlib.sha256(), 0, 0
            for piece, begins in self._pieces():
                digest.update(piece.encode())
                count += begins
                characters += len(piece)
            # of the documents themselves, without what stands between them
            self._scan = Scan(digest.hexdigest(), count, characters - len(BETWEEN) * max(0, count - 1))
        return self._scan

    def in_pieces(self) -> Iterator[Iterator[str]]:
        """Each document in pieces, one document after another: going on to the next ends the one before.

        Raises ValueError where a file is another than when it was read first.
        """
        for part in self.parts:
            self._check(part)
            for document in part.documents():
                pieces, blank = iter(document), []  # what it begins with, which is nothing where nothing else follows
                for piece in pieces:
                    blank.append(piece)
                    if piece.strip():
                        yield itertools.chain(("".join(blank),), pieces)
                        break
            self._check(part)

    def _check(self, part) -> None:
        """Raise ValueError where the file of a part is another than when it was read first."""
        if isinstance(part, Part) and self._versions.setdefault(part, now := part.version()) != now:
            raise ValueError(
                f"{place(part.path)} has changed since it was loaded; a text stays what it was; load it again."
            )

    def _pieces(self) -> Iterator[tuple[str, bool]]:
        """(piece, whether a document begins with it) of the joined text."""
        begun = False
        for document in self.in_pieces():
            yield (BETWEEN if begun else "") + next(document), True
            begun = True
            yield from ((piece, False) for piece in document)


def in_pieces(documents: Iterable[str]) -> Iterator[Iterable[str]]:
    """Each of `documents` in pieces: those of streamed ones, and one piece for a document in memory."""
    return documents.in_pieces() if isinstance(documents, Documents) else ((text,) for text in documents)
