"""How long a response is: words, sentences, paragraphs, and the first word of one of the paragraphs."""

import re

from lib.metrics.instructions.relation import holds


def words(response: str, *, num_words: int, relation: str) -> bool:
    """The number of runs of letters, digits and underscores."""
    return holds(len(re.findall(r"\w+", response)), relation, num_words)


def sentences(response: str, *, num_sentences: int, relation: str) -> bool:
    """The number of sentences by Punkt (Kiss and Strunk 2006, doi:10.1162/coli.2006.32.4.485), trained on English."""
    return holds(len(split_sentences(response)), relation, num_sentences)


def split_sentences(text: str) -> list[str]:
    """Sentences as NLTK's English Punkt model finds them; the model comes with a package, so no download is needed."""
    import punkt  # 0.03 s, only where sentences are counted

    return punkt.sent_tokenize(text, language="english")


def paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs, parted by `***`; an empty one is allowed at either end only."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    return all(parts[1:-1]) and sum(bool(part) for part in parts) == num_paragraphs


def paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs, parted by an empty line, of which the nth (from 1) begins with the word, in any case.

    The nth is counted with empty paragraphs, their number without: an oddity of the paper's program that is kept.
    """
    parts = response.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > filled or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    beginning = re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower()
    return filled == num_paragraphs and beginning == first_word.lower()
