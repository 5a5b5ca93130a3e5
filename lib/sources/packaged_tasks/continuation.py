"""How does this sentence go on? Sentences of Python's language reference, cut in the middle, with four endings.

One ending is the sentence's own, three belong to other sentences of about the same length (HellaSwag's form).
"""

import random
import re

from lib.sources import builtin_text

LIMITS = (60, 240)  # characters of a sentence


def rows() -> tuple[list[dict], str]:
    """Rows with question, choices[4] and answer; `group` is the document, whose sentences are correlated."""
    documents, origin = builtin_text.documents("test")
    halves = [(number, *half) for number, document in enumerate(documents) for half in sentences(document)]
    generator = random.Random(0)
    found = []
    for number, beginning, ending in halves:
        others = [(abs(len(other) - len(ending)), other) for place, _, other in halves if place != number]
        near = sorted(set(others))[:20]
        choices = [ending, *(other for _, other in generator.sample(near, 3))]
        order = generator.sample(range(4), 4)
        answer = order.index(0)
        choices = [choices[place] for place in order]
        found.append({"group": str(number), "question": beginning, "choices": choices, "answer": answer})
    return found, f"sentences of {origin}"


def sentences(document: str) -> list[tuple[str, str]]:
    """(beginning, ending) of the plain sentences of a document, cut at the word in the middle."""
    text = re.sub(r"\s+", " ", document)
    found = []
    for sentence in re.findall(r"(?<=[.] )[A-Z][a-z]+ [^.:;|=<>{}\[\]]+[.](?= )", text):
        if LIMITS[0] <= len(sentence) <= LIMITS[1]:
            words = sentence.split(" ")
            middle = len(words) // 2
            found.append((" ".join(words[:middle]), " ".join(words[middle:])))
    return list(dict.fromkeys(found))
