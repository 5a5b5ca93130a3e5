"""How a response is laid out: bullets, highlights, sections, JSON, a title, two answers, quotation marks, no commas."""

import json
import re

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def bullets(response: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that start with one `*` or with `-`."""
    stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def is_constrained_answer(response: str) -> bool:
    """One of the three answers occurs."""
    return any(answer in response for answer in ANSWERS)


def highlights(response: str, *, num_highlights: int) -> bool:
    """At least so many `*highlights*`; the pattern for `**bold**` counts on top, as in the paper's program."""
    single = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", response)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n\*]*\*\*", response)]
    return sum(bool(text.strip()) for text in single + double) >= num_highlights


def sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many headings of the form `Section 1`."""
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", response)) - 1 >= num_sections


def is_json(response: str) -> bool:
    """The response is JSON, bare or in a Markdown fence."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(response: str) -> bool:
    """A `<<title>>` that is not empty."""
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", response))


def two_responses(response: str) -> bool:
    """Two different answers, parted by six asterisks; an empty part is allowed at either end only."""
    parts = [part.strip() for part in response.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def is_quoted(response: str) -> bool:
    """The whole response stands in double quotation marks."""
    text = response.strip()
    return len(text) > 1 and text[0] == '"' and text[-1] == '"'


def has_no_comma(response: str) -> bool:
    """No comma anywhere."""
    return "," not in response
