"""C4's rules: lines that are no sentences go, and documents with too little left (arXiv 1910.10683, section 2.2).

Its block list of words, which needs a download, is left out.
"""

import re
from collections.abc import Iterable, Iterator

from lib.curation.document import Document
from lib.curation.tally import Tally

ENDS = (".", "!", "?", '"', "”")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CHANGED = "lines that are no sentences"
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


def stage(
    documents: Iterable[Document], *, tally: Tally | None = None, sentences: int = 5, line_words: int = 3
) -> Iterator[Document]:
    """The documents with their lines of at least `line_words` words, and of those the ones with `sentences` or more."""
    tally = tally or Tally("c4")
    for document in documents:
        text = cleaned(document.text, line_words)
        if why := _fault(text, sentences):
            tally.drop(document, why)
        else:
            yield tally.keep(document.saying(text), document, CHANGED)


def cleaned(text: str, line_words: int = 3) -> str:
    """The lines that end as sentences do, have enough words, and speak neither of JavaScript nor of policies."""
    left = []
    for line in text.split("\n"):
        line = _CITATION.sub("", line).strip()
        low = line.lower()
        if not line.endswith(ENDS) or line.endswith("...") or len(line.split()) < line_words or "javascript" in low:
            continue
        if not any(each in low for each in POLICY):
            left.append(line)
    return "\n".join(left)


def _fault(text: str, sentences: int) -> str | None:
    if "lorem ipsum" in text.lower():
        return "lorem ipsum"
    if "{" in text:
        return "a curly bracket"
    return f"fewer than {sentences} sentences" if sentences and _sentences(text) < sentences else None


def _sentences(text: str) -> int:
    import punkt  # 0.03 s, only where sentences are counted

    return len(punkt.sent_tokenize(text, language="english")) if text else 0
