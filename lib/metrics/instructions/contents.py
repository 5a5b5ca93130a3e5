"""What a response says: keywords, letters, placeholders, a postscript, a repeated prompt, a last phrase."""

import re

from lib.metrics.instructions.relation import holds

_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def has_keywords(response: str, *, keywords: list[str]) -> bool:
    """Every keyword occurs, in any case; a keyword is searched as a regular expression, as the paper's program does."""
    return all(re.search(word, response, re.IGNORECASE) for word in keywords)


def keyword_frequency(response: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """How often the keyword occurs, in any case and inside words too."""
    return holds(len(re.findall(keyword.strip(), response, re.IGNORECASE)), relation, frequency)


def has_no_forbidden_words(response: str, *, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word, in any case."""
    return not any(re.search(rf"\b{word}\b", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """How often one character occurs, in any case."""
    return holds(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


def placeholders(response: str, *, num_placeholders: int) -> bool:
    """At least so many `[placeholders]`, each within one line."""
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def has_postscript(response: str, *, postscript_marker: str) -> bool:
    """The marker occurs, in any case, and for the two usual ones with spaces between the letters."""
    marker = postscript_marker.strip()
    return re.search(_POSTSCRIPTS.get(marker, marker.lower()), response.lower()) is not None


def repeats_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """The response begins with the prompt, in any case."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(response: str, *, end_phrase: str) -> bool:
    """The response ends with the phrase, in any case; quotation marks around the response don't count."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())
