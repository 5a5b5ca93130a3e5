"""Extracts answers from generated text: first or last match of a pattern, exact match after normalising.

The rules are those of lm-evaluation-harness's `regex` filter and `exact_match` metric.
"""

import re
from collections import Counter

from lib.tasks.task import Sample

INVALID = "[invalid]"  # what stands for "no answer found"


def extract(pattern: str, text: str, index: int = 0) -> str:
    """The match number `index` of a pattern (its first group that is not empty), stripped; `INVALID` without one."""
    found = re.findall(pattern, text)
    if not found:
        return INVALID
    match = found[index]
    if isinstance(match, tuple):
        match = next((group for group in match if group), INVALID)
    return match.strip()


def exact(answer: str, target: str, ignored: tuple[str, ...] = (), *, lower: bool = False) -> float:
    """1.0 where both sides are equal after what matches one of the patterns `ignored` is removed from both."""
    for pattern in ignored:
        answer, target = re.sub(pattern, "", answer), re.sub(pattern, "", target)
    return float(answer.lower() == target.lower() if lower else answer == target)


def most_frequent(samples: list[Sample]) -> float:
    """The share of the most frequent target within each group, over all samples: the best constant of each group."""
    groups: dict[str, list[str]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(str(sample.target))
    return sum(Counter(targets).most_common(1)[0][1] for targets in groups.values()) / len(samples)
