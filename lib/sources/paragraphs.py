"""Paragraphs of a text that comes in pieces, of which a few megabytes are in memory at a time."""

import re
from collections.abc import Iterable, Iterator

BLANK = re.compile(r"\n\s*\n")  # what stands between two paragraphs
LONGEST = 1 << 20  # characters of a paragraph that are held as one
_APART = re.compile(r"[\W_]")  # what is no part of a word


def fragments(pieces: Iterable[str], *, longest: int = LONGEST) -> Iterator[tuple[str, bool]]:
    """(some text, whether its paragraph ends there) of the text that `pieces` are together, without the blank lines.

    The paragraphs are those of `BLANK.split`. One of more than `longest` characters comes in several fragments, which
    end between two words; a word that is longer itself is cut.
    """
    held = ""
    for piece in pieces:
        held, done = held + piece, 0
        firm = len(held.rstrip())  # the blank space behind it may go on in the next piece
        for blank in BLANK.finditer(held, 0, firm):
            yield held[done : blank.start()], True
            done = blank.end()
        if firm - done > longest:
            cut = _between_words(held, done, firm)
            yield held[done:cut], False
            done = cut
        held = held[done:]
    yield from ((each, True) for each in BLANK.split(held))


def _between_words(text: str, start: int, end: int) -> int:
    """The last place between two words of `text[start:end]`, before blank space; its end where there is none."""
    for place in range(end, start, -1):
        if _APART.match(text, place - 1):
            cut = start + len(text[start:place].rstrip())
            return cut if cut > start else place  # blank space alone before a word: it goes first, the word stays whole
    return end
