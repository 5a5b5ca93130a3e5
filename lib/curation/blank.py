"""Drops documents without a character to see."""

from collections.abc import Iterable, Iterator

from lib.curation.document import Document
from lib.curation.tally import Tally


def stage(documents: Iterable[Document], *, tally: Tally | None = None) -> Iterator[Document]:
    """The documents that have more than white space."""
    tally = tally or Tally("blank")
    for document in documents:
        if document.text.strip():
            yield tally.keep(document)
        else:
            tally.drop(document, "blank")
