"""One document of a corpus: its text, its id, and what else is known of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import xxhash


@dataclass(frozen=True)
class Document:
    """A text with its id and its metadata, which JSON can write.

    Two documents with equal ids have equal texts; a document that came without an id has one made of its text.
    """

    text: str
    id: str
    metadata: dict = field(default_factory=dict)

    def having(self, **known) -> "Document":
        """The same document with more metadata."""
        return replace(self, metadata={**self.metadata, **known})

    def saying(self, text: str) -> "Document":
        """The same document with another text."""
        return replace(self, text=text)

    def line(self) -> str:
        """The document as a line of JSONL, without its line end; `sources` reads it back."""
        row = {"id": self.id, "text": self.text, "metadata": self.metadata}
        return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    def lot(self, seed: int = 0) -> int:
        """A number that `seed` draws for this very document, whatever stands around it; from 0 to 2⁶⁴ - 1."""
        return xxhash.xxh3_64_intdigest(self.line().encode(), seed)


def text_id(text: str) -> str:
    """The id of a text that came without one: 32 digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identity(documents: Iterable[Document]) -> str:
    """Hexadecimal hash of a collection of documents, whatever their order: the sum of their SHA-256."""
    total = sum(int.from_bytes(hashlib.sha256(document.line().encode()).digest()) for document in documents)
    return f"{total % (1 << 256):064x}"


def again(documents: Iterable[Document], stage: str) -> Iterable[Document]:
    """The documents themselves; ValueError for an iterator, which can be gone through only once."""
    if iter(documents) is documents:
        raise ValueError(
            f"{stage} was given a {type(documents).__name__}, which can be read once; it reads the documents twice, "
            "and a list or sources.Shards is allowed; give one."
        )
    return documents
