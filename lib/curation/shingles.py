"""Runs of words that two texts share: what near-duplicates are told by. J(A, B) = |A ∩ B| / |A ∪ B| (Jaccard)."""

import itertools
from collections.abc import Iterable

import xxhash

from lib.curation import words

NGRAM = 5  # words of a run


def of(text: str, ngram: int = NGRAM) -> list[str]:
    """The different runs of `ngram` normalized words; of a shorter text all its words as one, of none nothing."""
    found = words.normalized(text).split()
    runs = {" ".join(found[place : place + ngram]) for place in range(max(1, len(found) - ngram + 1))}
    return sorted(runs - {""})


def hashed(text: str, ngram: int = NGRAM) -> frozenset[int]:
    """64 bits of each run of `of`."""
    return frozenset(xxhash.xxh3_64_intdigest(run.encode()) for run in of(text, ngram))


def jaccard(one: Iterable, other: Iterable) -> float:
    """The Jaccard similarity of two sets; 0 where one is empty."""
    one, other = frozenset(one), frozenset(other)
    return len(one & other) / len(one | other) if one and other else 0.0


def all_pairs(texts: Iterable[str], least: float, ngram: int = NGRAM) -> list[tuple[int, int, float]]:
    """(one, other, similarity) of all pairs that are at least so similar, each compared: for a few hundred texts."""
    held = sorted(((hashed(text, ngram), place) for place, text in enumerate(texts)), key=lambda each: len(each[0]))
    found = []
    for (one, first), (other, second) in itertools.combinations(held, 2):
        if len(one) >= least * len(other) and (value := jaccard(one, other)) >= least:
            found.append((min(first, second), max(first, second), value))
    return sorted(found)
