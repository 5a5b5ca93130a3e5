"""Takes out the paragraphs that share 13 words in a row with a text that models are tested on.

The rule, and the code, is that of `sources.contamination`: a paragraph ends at a blank line, case and punctuation don't
matter. Test texts of fewer than 13 words are found by none. The passages are held as 64-bit hashes, 8 bytes each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from lib import files
from lib.curation.document import Document
from lib.curation.tally import Tally
from lib.sources import contamination, tasks
from lib.sources.benchmarks import BENCHMARKS

WHY, NOTHING = "paragraphs of a test", "every paragraph is of a test"
BETWEEN = "\n\n"
_AT_ONCE = 1 << 20  # passages before they are sorted among the others


@dataclass(frozen=True)
class Passages:
    """Hashes of all runs of `words` words of some texts, ascending [count]."""

    hashes: np.ndarray
    words: int

    @classmethod
    def of(cls, texts: Iterable[str], words: int = contamination.WORDS) -> "Passages":
        """The passages of `texts`."""
        known, some = np.zeros(0, np.uint64), []
        for text in texts:
            some += [_hash(passage) for passage in contamination.passages(text, words)]
            if len(some) >= _AT_ONCE:
                known, some = np.union1d(known, np.array(some, np.uint64)), []
        return cls(np.union1d(known, np.array(some, np.uint64)), words)

    def share(self, text: str) -> bool:
        """Whether a text has one of the passages."""
        mine = np.array([_hash(passage) for passage in contamination.passages(text, self.words)], np.uint64)
        at = np.searchsorted(self.hashes, mine)
        inside = at < len(self.hashes)
        return bool((self.hashes[at[inside]] == mine[inside]).any())


def stage(
    documents: Iterable[Document],
    *,
    tally: Tally | None = None,
    tests: Iterable[str] | Passages | None = None,
    words: int = contamination.WORDS,
) -> Iterator[Document]:
    """The documents without such paragraphs; one of which nothing is left goes.

    tests: texts that models are tested on, or their `Passages`; None for those of all tasks at hand.
    """
    tally = tally or Tally("decontaminate")
    tests = at_hand() if tests is None else tests
    known = tests if isinstance(tests, Passages) else Passages.of(tests, words)
    for document in documents:
        parts = contamination.paragraphs(document.text)
        left = [part for part in parts if not known.share(part)]
        if len(left) == len(parts):
            yield tally.keep(document)
        elif not any(map(str.strip, left)):
            tally.drop(document, NOTHING)
        else:
            yield tally.keep(document.saying(BETWEEN.join(left)), document, WHY)


def basis(*, tests: Iterable[str] | None = None, **_) -> str:
    """What a run of `pipeline` depends on beside its options: the hashes of the tasks' files."""
    return "given" if tests is not None else " ".join(files.sha256(path) for path in _paths())


def at_hand() -> Iterator[str]:
    """Every text of every row of the tasks whose data are in `$THIMBLE_DATA`, of splits that models are tested on.

    A row's parts count each alone.
    """
    for path in _paths():
        for _, row in tasks.lines(path):
            yield from _texts(row)


def _paths() -> list:
    """The files of all splits but training ones."""
    found = {}
    for name, benchmark in BENCHMARKS.items():
        for split in benchmark.files:
            if split != "train" and (here := tasks.local(name, (split,))):
                found |= dict.fromkeys(here[1])
    return list(found)


def _texts(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _hash(passage: str) -> int:
    return xxhash.xxh3_64_intdigest(passage.encode())
