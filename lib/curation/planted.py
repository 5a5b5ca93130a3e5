"""Copies of documents that are planted among them, so that one can count which a deduplication finds."""

import random
from collections.abc import Iterable

from lib.curation.document import Document

MARK = "planted copy of "


def among(documents: Iterable[Document], *, every: int = 3, dropped: float = 0.05, seed: int = 0) -> list[Document]:
    """The documents, and behind them a copy of every so many-th: without a share of its words, in other lines and case.

    Few runs of five words of such a copy are those of its document, and it says the same.
    """
    held = list(documents)
    return held + [copy_of(document, dropped, seed + place) for place, document in enumerate(held[::every])]


def copy_of(document: Document, dropped: float, seed: int) -> Document:
    """A document without a share of its words, of which every sixth is in capital letters."""
    words, draw = document.text.split(), random.Random(seed)
    gone = set(draw.sample(range(len(words)), int(dropped * len(words))))
    left = [word.upper() if place % 6 == 0 else word for place, word in enumerate(words) if place not in gone]
    lines = [" ".join(left[start : start + 11]) for start in range(0, len(left), 11)]
    return Document("\n".join(lines), MARK + document.id, document.metadata)


def recall(documents: list[Document], left: Iterable[Document]) -> tuple[float, int]:
    """(Of the planted copies the share of which not both they and their document are left, how many were planted)."""
    there, stay = {document.id for document in documents}, {document.id for document in left}
    copies = [id for id in there if id.startswith(MARK)]
    met = [not (id in stay and id.removeprefix(MARK) in stay) for id in copies]
    return (sum(met) / len(met) if met else 1.0), len(met)
