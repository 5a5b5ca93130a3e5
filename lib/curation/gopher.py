"""Gopher's quality filter: documents that look like prose (Rae et al., arXiv 2112.11446, appendix A.1.1).

Words are what stands between white space; a language other than English needs stop words of its own.
"""

from collections.abc import Iterable, Iterator

from lib.curation import limits as bounds
from lib.curation.document import Document
from lib.curation.limits import INF
from lib.curation.tally import Tally

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
LIMITS = {
    "words": (50, 100_000),
    "mean word length": (3, 10),
    "hashes per word": (0, 0.1),
    "ellipses per word": (0, 0.1),
    "lines that begin with a bullet": (0, 0.9),
    "lines that end with an ellipsis": (0, 0.3),
    "words with a letter": (0.8, 1),
    "different stop words": (2, INF),
}
_BULLETS = ("•", "‣", "-", "*", "●", "▪", "–")


def stage(
    documents: Iterable[Document],
    *,
    tally: Tally | None = None,
    limits: dict | None = None,
    stop_words: Iterable[str] = STOP_WORDS,
) -> Iterator[Document]:
    """The documents within all `LIMITS`, of which `limits` replaces some: {"words": (20, 1000)}."""
    chosen = frozenset(stop_words)
    found = bounds.merged(LIMITS, limits)
    return bounds.within(documents, lambda text: measures(text, chosen), found, tally or Tally("gopher"))


def measures(text: str, stop_words: Iterable[str] = STOP_WORDS) -> dict[str, float]:
    """The value of each measure that has limits."""
    words, lines = text.split(), text.split("\n")
    count = max(1, len(words))
    return {
        "words": len(words),
        "mean word length": sum(map(len, words)) / count,
        "hashes per word": text.count("#") / count,
        "ellipses per word": (text.count("...") + text.count("…")) / count,
        "lines that begin with a bullet": sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines),
        "lines that end with an ellipsis": sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
        "words with a letter": sum(any(map(str.isalpha, word)) for word in words) / count,
        "different stop words": len(set(stop_words).intersection(map(str.lower, words))),
    }
