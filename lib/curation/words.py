"""Words of a text, as the quality signals and filters count them."""

import functools
import re
import string
import unicodedata
from pathlib import Path

import regex

_PUNCTUATION = string.punctuation.encode()
_PUNCTUATED = re.compile(f"[{re.escape(string.punctuation)}]+")
_RAW, _LETTER = r"\w+|[^\w\s]+", r"[a-zA-Z]\w*"
# NLTK reads with `regex`, for which "²" is no part of a word; of ASCII both say the same, and `re` is faster
_READ = {True: (re.compile(_RAW), re.compile(_LETTER)), False: (regex.compile(_RAW), regex.compile(_LETTER))}


def without_punctuation(text: str) -> str:
    """The text in lower case without ASCII punctuation, white space as it was."""
    if text.isascii():
        return text.encode().translate(None, _PUNCTUATION).decode().lower()
    return _PUNCTUATED.sub("", text).lower()


def joined(bare: str) -> str:
    """A text `without_punctuation` with its white space joined, decomposed (NFD)."""
    found = " ".join(bare.split())
    return found if found.isascii() else unicodedata.normalize("NFD", found)


def normalized(text: str) -> str:
    """The text in lower case without ASCII punctuation, white space joined, decomposed (NFD), as in RedPajama-v2."""
    return joined(without_punctuation(text))


def raw(text: str) -> list[str]:
    """Runs of letters and digits, and runs of other signs: NLTK's WordPunctTokenizer."""
    return _READ[text.isascii()][0].findall(text)


def with_letter(text: str) -> int:
    """How many of the `raw` words have a letter from a to z."""
    return len(_READ[text.isascii()][1].findall(text))


@functools.cache
def stop_words(language: str) -> frozenset[str]:
    """The stop words of RedPajama-v2 for "de", "en", "es", "fr" or "it".

    From github.com/6/stopwords-json (Apache-2.0), the English ones being those of the SMART system (Salton 1971).
    Raises ValueError for another language.
    """
    lines = (Path(__file__).parent / "stop_words.txt").read_text(encoding="utf-8").splitlines()
    known = dict(line.split(": ", 1) for line in lines)
    if language not in known:
        raise ValueError(f"language={language!r} has no stop words here; {', '.join(known)} have; choose one.")
    return frozenset(known[language].split(" "))
