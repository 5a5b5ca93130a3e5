"""FineWeb's own filters: lists, menus and repeated lines (Penedo et al., arXiv 2406.17557, section 3.6).

Thresholds are those of its published code, datatrove 0.10.1, whose share of characters in repeated lines is 0.01 where
the paper says 0.1.
"""

from collections.abc import Iterable, Iterator

from lib.curation import limits as bounds
from lib.curation.document import Document
from lib.curation.limits import INF
from lib.curation.repetition import repeated
from lib.curation.tally import Tally

LIMITS = {
    "lines that end with punctuation": (0.12, 1),
    "short lines": (0, 0.67),
    "characters of repeated lines": (0, 0.01),
    "line ends per word": (0, 0.3),
}
SHORT = 30  # characters of a short line
_ENDS = (".", "!", "?", '"', "'", "”", "’", "…", "。", "！", "？", "؟", "।")


def stage(
    documents: Iterable[Document], *, tally: Tally | None = None, limits: dict | None = None
) -> Iterator[Document]:
    """The documents within all `LIMITS`, of which `limits` replaces some."""
    return bounds.within(documents, measures, bounds.merged(LIMITS, limits), tally or Tally("fineweb"))


def measures(text: str) -> dict[str, float]:
    """The value of each measure that has limits."""
    lines = [line for line in text.split("\n") if line.strip()]
    words, count = len(text.split()), max(1, len(lines))
    return {
        "lines that end with punctuation": sum(line.rstrip().endswith(_ENDS) for line in lines) / count,
        "short lines": sum(len(line) <= SHORT for line in lines) / count,
        "characters of repeated lines": sum(map(len, repeated(lines))) / max(1, len(text.replace("\n", ""))),
        "line ends per word": text.count("\n") / words if words else INF,
    }
