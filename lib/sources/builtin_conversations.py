"""The packaged conversations: questions about the headings of CPython's language reference, answered by what it says.

Every Python carries the text (`builtin_text`). A heading, underlined, becomes a question; the prose below it, without
grammars and programs, the answer.
"""

import platform
import re

from lib.sources import builtin_text

LONGEST = 480  # characters of an answer: whole paragraphs up to here, the first in any case
SHORTEST = 60  # of one that says something
_HEADING = re.compile(r"^(\S.{2,70})\n([*=\-^~])\2{2,}\n", re.M)
_ASKED = (
    'What does the Python language reference say about "{}"?',
    'Please explain "{}" in Python.',
    'In Python, what should I know about "{}"?',
)


def rows(split: str) -> tuple[list[dict], str]:
    """(Rows {"prompt", "completion"} of a split, "train", "valid" or "test"; where they come from)."""
    topics, _ = builtin_text.documents(split)
    found = {}
    for topic in topics:
        places = [*_HEADING.finditer(topic)]
        ends = [each.start() for each in places[1:]] + [len(topic)]
        for heading, end in zip(places, ends):
            answer = _prose(topic[heading.end() : end])
            if len(answer) >= SHORTEST:
                found.setdefault(heading[1].strip().replace('"', ""), answer)
    made = [
        {"prompt": _ASKED[place % len(_ASKED)].format(title), "completion": answer}
        for place, (title, answer) in enumerate(sorted(found.items()))
    ]
    return made, f"questions about pydoc_data.topics of Python {platform.python_version()}, {split}"


def _prose(text: str) -> str:
    """The first paragraphs of plain sentences, each on one line."""
    kept, size = [], 0
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        words = " ".join(line.strip() for line in lines)
        if not words or any(line.startswith("   ") for line in lines) or not re.match(r"[A-Z\"*]", words):
            continue
        if words.endswith(":"):
            words = words[:-1] + "."
        if kept and size + len(words) > LONGEST:
            break
        kept.append(words)
        size += len(words)
    return "\n\n".join(kept)
