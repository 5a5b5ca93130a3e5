"""Text to train on must not hold the text to test on: passages of one that occur in the other are taken out.

Two texts overlap where they share 13 words in a row, whatever their case and punctuation.
Source of the rule: Brown et al., "Language Models are Few-Shot Learners", arXiv 2005.14165, appendix C.

Streamed texts are read piece by piece, and what is left of one is a streamed text. Of the other text so many passages
are held as fit into about 200 MB; where it has more, the first text is read once more for each such part of it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lib.sources import streams
from lib.sources.paragraphs import BLANK, fragments
from lib.sources.texts import Text

WORDS = 13
AT_ONCE = 1 << 20  # passages held at once
_WORD = re.compile(r"[^\W_]+")
_DROPPED, _LAST = 1, 2  # marks of a paragraph: it is left out; its document ends with it


def without(text: Text, other: Text, *, words: int = WORDS) -> Text:
    """`text` without the paragraphs that share `words` words in a row with `other`; says how many these are.

    A paragraph ends at a blank line. Raises ValueError where nothing would be left.
    """
    if words < 1:
        raise ValueError(f"words={words}; 1 or more in a row are an overlap; {WORDS} are usual.")
    marks = _marks(text, other, words)
    documents = streams.Documents(_Rest(text.documents, marks))
    if next(documents.in_pieces(), None) is None:
        raise ValueError(
            f"every paragraph of {text.name}/{text.split} shares {words} words in a row with "
            f"{other.name}/{other.split}; texts that differ are needed; choose another text or split."
        )
    dropped = sum(map(marks.count, (_DROPPED, _DROPPED | _LAST)))
    which = f"{dropped} of {len(marks)} paragraphs share {words} words with {other.name}/{other.split}"
    print(f"text {text.name}/{text.split}: {which}" + (" and are left out" if dropped else ""))
    left = documents if text.streamed else list(documents)
    return Text(text.name, text.split, left, origin=f"{text.origin}; {which}")


@dataclass(frozen=True)
class _Rest:
    """What is left of documents: `marks` has a byte for each of their paragraphs."""

    source: list[str] | streams.Documents
    marks: bytes

    def documents(self) -> Iterator[Iterable[str]]:
        """Each document in pieces: as it was where nothing is left out, else its other paragraphs, blank lines between.

        One of which nothing is left is blank.
        """
        ends = re.compile(b"[%c%c]" % (_LAST, _DROPPED | _LAST))
        place = 0
        for document in streams.in_pieces(self.source):
            end = ends.search(self.marks, place).end()
            marks = self.marks[place:end]
            touched = marks[-1] & _DROPPED or _DROPPED in marks
            yield _others(document, marks) if touched else document
            place = end


def _others(document: Iterable[str], marks: bytes) -> Iterator[str]:
    place, begun, within = 0, False, False
    for fragment, ends in fragments(document):
        if not marks[place] & _DROPPED:
            yield fragment if within or not begun else streams.BETWEEN + fragment
            begun, within = True, not ends
        place += ends


def _marks(text: Text, other: Text, words: int) -> bytes:
    marks = bytearray()
    for known in _known(other, words):
        place = 0
        for document in streams.in_pieces(text.documents):
            for found, ends in _read(document, words):
                if place == len(marks):
                    marks.append(0)
                marks[place] |= _DROPPED * (not known.isdisjoint(found))
                place += ends
            marks[place - 1] |= _LAST
    return bytes(marks)


def _known(other: Text, words: int) -> Iterator[set[str]]:
    """The passages of a text, `AT_ONCE` or a few more of them at a time; an empty set where it has none."""
    known = set()
    for document in streams.in_pieces(other.documents):
        for found, _ in _read(document, words, across=True):
            known |= found
            if len(known) >= AT_ONCE:
                yield known
                known = set()
    yield known


def _read(document: Iterable[str], words: int, across: bool = False) -> Iterator[tuple[set[str], bool]]:
    """(passages, whether a paragraph ends there) of the fragments of a document; `across` blank lines, or not."""
    before: list[str] = []
    for fragment, ends in fragments(document):
        found = [*before, *_WORD.findall(fragment.lower())]
        yield _runs(found, words), ends
        before = [] if ends and not across else found[max(0, len(found) - words + 1) :]


def paragraphs(document: str) -> list[str]:
    """The paragraphs of a document, as `without` takes them out."""
    return BLANK.split(document)


def passages(document: str, words: int = WORDS) -> set[str]:
    """All runs of `words` words in a row, in lower case and without punctuation."""
    return _runs(_WORD.findall(document.lower()), words)


def _runs(found: list[str], words: int) -> set[str]:
    return {" ".join(found[start : start + words]) for start in range(len(found) - words + 1)}
