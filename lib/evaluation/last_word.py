"""The last word of a sentence that the sentences before it lead to: LAMBADA's question, asked about any text.

LAMBADA (Paperno et al., arXiv 1606.06031) asks for the last word of a passage of a novel; its own passages were chosen
so that people need the whole passage. Here they are the text's, as they come, so scores compare models of one study
and not with the published ones.
"""

import re
from collections import Counter
from collections.abc import Iterable

from lib.tasks.task import Likelihood, Outcome, Sample, Task

LEAST = 40  # words before the last one


def task(documents: Iterable[str], count: int, *, words: int | None = None) -> Task:
    """A task of `count` passages of `documents`, the same distance apart: whole sentences, `words` (`LEAST`) or more.

    Metrics: last_word (share of passages whose last word greedy decoding would write), logprob (of that word, in nats).
    The constant answer is the most frequent last word. Raises ValueError for text that has fewer passages.
    """
    words = LEAST if words is None else words
    found = [(number, passage) for number, text in enumerate(documents) for passage in _passages(text, words)]
    if not 1 <= count <= len(found):
        raise ValueError(
            f"count={count} passages of a text that has {len(found)} of {words} words or more; 1 to {len(found)} are "
            "allowed; ask for fewer, or give more text."
        )
    chosen = [found[place * len(found) // count] for place in range(count)]
    samples = [
        Sample(f"passage-{place}", str(number), (Likelihood(*_cut(passage)),), _cut(passage)[1].strip())
        for place, (number, passage) in enumerate(chosen)
    ]
    frequent = Counter(sample.target for sample in samples).most_common(1)[0][1] / count
    data = {"source": "passages of the unseen text", "count": count, "words": words}
    return Task("last_word", samples, ("last_word", "logprob"), {}, {"last_word": frequent}, data, _score)


def _score(sample: Sample, answers: list[Outcome]) -> dict[str, float]:
    return {"last_word": float(answers[0].greedy), "logprob": answers[0].logprob}


def _passages(text: str, words: int) -> list[str]:
    """Runs of whole sentences that have at least `words` words and end in one, without what follows it."""
    found, held = [], ""
    for sentence in re.findall(r"[^.!?]+[.!?]+[\"'”’)]*\s*", re.sub(r"\s+", " ", text)):
        held += sentence
        if len(held.split()) > words:
            if re.search(r" [A-Za-z]{2,}[.!?]+[\"'”’)]*\s*$", held):
                found.append(re.sub(r"[^A-Za-z]+$", "", held).strip())
            held = ""
    return found


def _cut(passage: str) -> tuple[str, str]:
    """(All but the last word, a blank and that word)."""
    before, _, word = passage.rpartition(" ")
    return before, f" {word}"
