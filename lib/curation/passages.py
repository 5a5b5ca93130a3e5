"""Repeated passages: a run of words that stands in several places stays in one of them (Lee et al., arXiv 2107.06499).

Near-duplicates share most of their words; a quoted licence, a press release or a boilerplate paragraph is a passage
inside documents that are otherwise their own. There passages of 50 tokens are found in a suffix array of the whole
corpus; here runs of `words` words by a rolling hash of 64 bits, 8 bytes a word in memory and no array to build: a
passage of at least so many words occurs twice exactly where each of its runs does.

Words are compared without regard to case, punctuation and white space. A passage stays in the document with the most
repeated runs, so that one which quotes the whole keeps the whole; of several the seed draws one. So it depends neither
on the order of documents nor on their shards. In that document the first place counts.
A document of which nothing is left goes.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from lib.curation.document import Document, again
from lib.curation.tally import Tally

WORDS = 50
WHY, NOTHING = "passages of other documents", "only passages of other documents"
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a run is lost


def stage(
    documents: Iterable[Document], *, tally: Tally | None = None, seed: int = 0, words: int = WORDS
) -> Iterator[Document]:
    """The documents without the runs of at least `words` words that stand somewhere else and stay there."""
    decided = decide(again(documents, "removal of passages"), seed=seed, words=words)
    return decided.carry_out(documents, tally or Tally("passages"))


@dataclass(frozen=True)
class Repeated:
    """Runs of words that stand in several places: their hashes, ascending, and the document that keeps each [count]."""

    runs: np.ndarray
    keeper: np.ndarray
    words: int

    def carry_out(self, documents: Iterable[Document], tally: Tally, first: int = 0) -> Iterator[Document]:
        """The documents without what others keep, of some of which the first has the place `first`."""
        for place, document in enumerate(documents, first):
            left = self._left(document.text, place)
            if left is None:
                yield tally.keep(document)
            elif not _WORD.search(left):
                tally.drop(document, NOTHING)
            else:
                yield tally.keep(document.saying(left), document, WHY)

    def _left(self, text: str, place: int) -> str | None:
        """What is left of a text; None where all is."""
        spans = [found.span() for found in _WORD.finditer(text)]
        runs = _runs([text[start:end] for start, end in spans], self.words)
        at = np.searchsorted(self.runs, runs)
        known = at < len(self.runs)
        known[known] = self.runs[at[known]] == runs[known]
        if not known.any():
            return None
        mine = np.zeros(len(runs), bool)  # the first place of each run that this document keeps
        mine[np.unique(runs, return_index=True)[1]] = True
        mine[known] &= self.keeper[at[known]] == place
        gone = np.zeros(len(spans) + 1, np.int64)
        starts = np.flatnonzero(known & ~mine)
        np.add.at(gone, starts, 1)
        np.add.at(gone, starts + self.words, -1)
        gone = gone.cumsum()[:-1] > 0
        return _without(text, spans, gone) if gone.any() else None

    def arrays(self) -> dict[str, np.ndarray]:
        """What `read` takes: arrays by name."""
        return {"runs": self.runs, "keeper": self.keeper, "words": np.array([self.words])}

    @classmethod
    def read(cls, arrays: dict[str, np.ndarray]) -> "Repeated":
        """The decision that `arrays` were made of."""
        return cls(arrays["runs"], arrays["keeper"], int(arrays["words"][0]))


KIND = Repeated


def decide(documents: Iterable[Document], *, seed: int = 0, words: int = WORDS) -> Repeated:
    """Which runs stand in several places; holds 16 bytes a word and 8 bytes a document."""
    if isinstance(words, bool) or not isinstance(words, int) or words < 2:
        raise ValueError(f"words={words!r}; whole numbers from 2 are allowed; {WORDS} are usual.")
    found, places, lots = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], []
    for place, document in enumerate(documents):
        found.append(_runs(_WORD.findall(document.text), words))
        places.append(np.full(len(found[-1]), place))
        lots.append(document.lot(seed))
    runs, places = np.concatenate(found), np.concatenate(places)
    hashes, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
    several = counts > 1
    amount = np.bincount(places[several[inverse]], minlength=len(lots))
    rank = np.empty(len(lots), np.int64)  # of documents, the one that keeps first
    rank[np.lexsort((np.array(lots, np.uint64), -amount))] = np.arange(len(lots))
    order = np.lexsort((rank[places], inverse))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else np.zeros(0, np.int64)
    return Repeated(hashes[several], places[order][starts[several]], words)


def _runs(found: list[str], words: int) -> np.ndarray:
    """A hash of each run of so many words, uint64 [words of the text - words + 1]: Σ h(w_i) Bⁿ⁻ⁱ modulo 2⁶⁴."""
    count = len(found) - words + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    hashes = np.array([xxhash.xxh3_64_intdigest(word.lower().encode()) for word in found], np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(words):
        total = total * _BASE + hashes[place : place + count]
    return total


def _without(text: str, spans: list[tuple[int, int]], gone: np.ndarray) -> str:
    """The text without the words that are gone, and what stands between them."""
    parts, begin = [], 0
    borders = np.flatnonzero(np.diff(np.concatenate([[0], gone.astype(np.int8), [0]])))
    for first, last in zip(borders[::2].tolist(), borders[1::2].tolist()):
        parts.append(text[begin : spans[first][0]])
        begin = spans[last][0] if last < len(spans) else len(text)
    return "".join([*parts, text[begin:]])
