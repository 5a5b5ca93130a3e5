"""Baselines for summaries that need no model: an empty text, a generic sentence, the start of the source."""

import re
from collections.abc import Callable

import numpy as np

from lib.tasks.task import Sample

SENTENCES = 3  # LEAD-3: the usual number (Nallapati et al. 2017, arXiv 1611.04230)
GENERIC = {
    "en": "The text is about recent events, what led to them, and what the people concerned said about them.",
    "de": "Der Text handelt von den Ereignissen der letzten Tage und davon, was die Betroffenen dazu sagen.",
}


def lead(source: str, sentences: int = SENTENCES) -> str:
    """The first sentences of a source; LongBench's marks of line ends and passages are no part of them."""
    text = re.sub(r"\bNEWLINE_CHAR\b|^Passage \d+:$", " ", source, flags=re.M)
    return " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:sentences])


def constant(
    score: Callable, source: Callable[[Sample], str], *, language: str = "en", sentences: int = SENTENCES
) -> Callable:
    """The baseline of a task of summaries: for each metric the best of nothing, one generic sentence, and the lead.

    score: the task's own; source: the text that a sample's prompt asks to be summarised; sentences: of the lead.
    """

    def best(samples: list[Sample]) -> dict[str, float]:
        texts = (lambda sample: "", lambda sample: GENERIC[language], lambda sample: lead(source(sample), sentences))
        found = [[score(sample, [text(sample)]) for sample in samples] for text in texts]
        return {
            metric: max(float(np.mean([each[metric] for each in scores])) for scores in found) for metric in found[0][0]
        }

    return best


def after(mark: str, end: str = "") -> Callable[[Sample], str]:
    """The part of a sample's prompt after the first `mark`, up to the last `end` where there is one."""

    def source(sample: Sample) -> str:
        text = sample.requests[0].prompt.split(mark, 1)[-1]
        return text.rsplit(end, 1)[0] if end else text

    return source
