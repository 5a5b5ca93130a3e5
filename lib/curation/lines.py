"""Line deduplication: a line that stands in several documents stays in one of them.

Menus, notices and footers repeat over the pages of a site; taken out line by line they leave the article. Lines are
equal without regard to case, digits, punctuation and white space, as in CCNet (Wenzek et al., arXiv 1911.00359, section
3.1); `shortest` ones ("Yes.", "}") are left alone. A document of which nothing is left goes. The document that keeps a
line is drawn by the seed, so it depends neither on the order of documents nor on their shards.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from lib.curation.document import Document, again
from lib.curation.tally import Tally

WHY, NOTHING = "lines of other documents", "only lines of other documents"
_IGNORED = re.compile(r"[\W\d_]+")


def stage(
    documents: Iterable[Document], *, tally: Tally | None = None, seed: int = 0, shortest: int = 20
) -> Iterator[Document]:
    """The documents without the lines of at least `shortest` letters that another document has and keeps."""
    decided = decide(again(documents, "line deduplication"), seed=seed, shortest=shortest)
    return decided.carry_out(documents, tally or Tally("lines"))


@dataclass(frozen=True)
class Lines:
    """Lines that stand in several documents, and who keeps each.

    lines: their hashes, ascending [count]; keeper: the place of the document that keeps each [count].
    """

    lines: np.ndarray
    keeper: np.ndarray
    shortest: int

    def carry_out(self, documents: Iterable[Document], tally: Tally, first: int = 0) -> Iterator[Document]:
        """The documents with the lines that are theirs, of some of which the first has the place `first`."""
        for place, document in enumerate(documents, first):
            lines = document.text.split("\n")
            hashes = [_hash(line, self.shortest) for line in lines]
            left = [line for line, hash in zip(lines, hashes) if hash is None or self._keeper(hash, place) == place]
            if len(left) < len(lines) and not any(map(str.strip, left)):
                tally.drop(document, NOTHING)
            else:
                changed = document if len(left) == len(lines) else document.saying("\n".join(left))
                yield tally.keep(changed, document, WHY)

    def _keeper(self, hash: int, place: int) -> int:
        """The place of the document that keeps a line: `place` itself where no other has it."""
        at = int(np.searchsorted(self.lines, np.uint64(hash)))
        return int(self.keeper[at]) if at < len(self.lines) and self.lines[at] == hash else place

    def arrays(self) -> dict[str, np.ndarray]:
        """What `read` takes: arrays by name."""
        return {"lines": self.lines, "keeper": self.keeper, "shortest": np.array([self.shortest])}

    @classmethod
    def read(cls, arrays: dict[str, np.ndarray]) -> "Lines":
        """The decision that `arrays` were made of."""
        return cls(arrays["lines"], arrays["keeper"], int(arrays["shortest"][0]))


KIND = Lines


def decide(documents: Iterable[Document], *, seed: int = 0, shortest: int = 20) -> Lines:
    """Which lines stand in several documents; holds 16 bytes a line and 8 bytes a document."""
    found, lots = [], []
    for place, document in enumerate(documents):
        own = {hash for line in document.text.split("\n") if (hash := _hash(line, shortest)) is not None}
        found.append(np.array([[hash, place] for hash in sorted(own)], np.uint64).reshape(-1, 2))
        lots.append(document.lot(seed))
    pairs = np.concatenate([np.zeros((0, 2), np.uint64), *found])
    places = pairs[:, 1].astype(np.int64)
    order = np.lexsort((places, np.array(lots, np.uint64)[places], pairs[:, 0]))
    hashes, starts, counts = np.unique(pairs[order, 0], return_index=True, return_counts=True)
    several = counts > 1
    return Lines(hashes[several], places[order][starts[several]], shortest)


def _hash(line: str, shortest: int) -> int | None:
    """64 bits of a line's letters; None for a line with fewer than `shortest`."""
    letters = _IGNORED.sub("", line.lower())
    return xxhash.xxh3_64_intdigest(letters.encode()) if len(letters) >= shortest else None
