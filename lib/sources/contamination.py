"""Text to train on must not hold the text to test on: passages of one that occur in the other are taken out.

Two texts overlap where they share 13 words in a row, whatever their case and punctuation.
Source of the rule: Brown et al., "Language Models are Few-Shot Learners", arXiv 2005.14165, appendix C.
"""

import re

from lib.sources.texts import Text

WORDS = 13
_WORD = re.compile(r"[^\W_]+")
_BLANK = re.compile(r"\n\s*\n")


def without(text: Text, other: Text, *, words: int = WORDS) -> Text:
    """`text` without the paragraphs that share `words` words in a row with `other`; says how many these are.

    A paragraph ends at a blank line. Raises ValueError where nothing would be left.
    """
    if words < 1:
        raise ValueError(f"words={words}; 1 or more in a row are an overlap; {WORDS} are usual.")
    known = {passage for document in other.documents for passage in _passages(document, words)}
    documents, dropped, total = [], 0, 0
    for document in text.documents:
        paragraphs = _BLANK.split(document)
        kept = [part for part in paragraphs if known.isdisjoint(_passages(part, words))]
        total, dropped = total + len(paragraphs), dropped + len(paragraphs) - len(kept)
        if any(part.strip() for part in kept):
            documents.append(document if len(kept) == len(paragraphs) else "\n\n".join(kept))
    if not documents:
        raise ValueError(
            f"every paragraph of {text.name}/{text.split} shares {words} words in a row with "
            f"{other.name}/{other.split}; texts that differ are needed; choose another text or split."
        )
    which = f"{dropped} of {total} paragraphs share {words} words with {other.name}/{other.split}"
    print(f"text {text.name}/{text.split}: {which}" + (" and are left out" if dropped else ""))
    return Text(text.name, text.split, documents, origin=f"{text.origin}; {which}")


def _passages(document: str, words: int) -> set[tuple[str, ...]]:
    found = _WORD.findall(document.lower())
    return {tuple(found[start : start + words]) for start in range(len(found) - words + 1)}
