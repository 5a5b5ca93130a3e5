"""Gopher's filter against repetition: of lines, paragraphs and runs of words (arXiv 2112.11446, appendix A.1.1).

Runs of words are those of `signals`: of normalized words, and all copies count, the first one too.
"""

import re
from collections.abc import Iterable, Iterator

from lib.curation import limits as bounds
from lib.curation import signals, words
from lib.curation.document import Document
from lib.curation.tally import Tally

LIMITS = {
    "repeated lines": (0, 0.3),
    "characters of repeated lines": (0, 0.2),
    "repeated paragraphs": (0, 0.3),
    "characters of repeated paragraphs": (0, 0.2),
    **{f"characters of the most frequent {n} words": (0, most) for n, most in ((2, 0.2), (3, 0.18), (4, 0.16))},
    **{f"characters of repeated {n} words": (0, 0.2 - n / 100) for n in range(5, 11)},
}
_BLANK = re.compile(r"\n{2,}")


def stage(
    documents: Iterable[Document], *, tally: Tally | None = None, limits: dict | None = None
) -> Iterator[Document]:
    """The documents within all `LIMITS`, of which `limits` replaces some."""
    return bounds.within(documents, measures, bounds.merged(LIMITS, limits), tally or Tally("repetition"))


def measures(text: str) -> dict[str, float]:
    """The value of each measure that has limits: shares, from 0 to 1."""
    found = {}
    stripped = text.strip()
    for name, parts in (("lines", re.split(r"\n+", stripped)), ("paragraphs", _BLANK.split(stripped))):
        again = repeated(parts)
        found[f"repeated {name}"] = len(again) / len(parts)
        found[f"characters of repeated {name}"] = sum(map(len, again)) / max(1, len(text))
    runs = signals.repetition(words.normalized(text).split())
    for n in signals.TOP:
        found[f"characters of the most frequent {n} words"] = runs[f"rps_doc_frac_chars_top_{n}gram"]
    for n in signals.DUPLICATE:
        found[f"characters of repeated {n} words"] = runs[f"rps_doc_frac_chars_dupe_{n}grams"]
    return found


def repeated(parts: list[str]) -> list[str]:
    """The parts that stood before already."""
    seen: set[str] = set()
    return [part for part in parts if part in seen or seen.add(part)]
