"""Locality-sensitive hashing of MinHash signatures: which pairs of documents are looked at.

A signature of b · r numbers is cut into b bands of r. Two documents whose shingles have the Jaccard similarity s agree
in one number with probability s, and are a candidate pair, since all r numbers of some band agree, with

    P(s) = 1 - (1 - sʳ)ᵇ,

the S-curve (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

import functools

import numpy as np

_STEP = 0.001


def probability(jaccard, bands: int, rows: int):
    """P that documents with that similarity become a candidate pair."""
    return 1 - (1 - np.asarray(jaccard, float) ** rows) ** bands


@functools.cache
def choose(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows) of at most `permutations` numbers that err least around `threshold`.

    Least is ∫ P below it and ∫ 1 - P above it, together; so RedPajama-v2 chose 9 x 13 of 128 for 0.8. Raises ValueError
    for a threshold outside of 0 to 1 and for no permutations.
    """
    if (
        not 0 < threshold <= 1
        or isinstance(permutations, bool)
        or not isinstance(permutations, int)
        or permutations < 1
    ):
        raise ValueError(
            f"threshold={threshold!r} of {permutations!r} permutations; above 0 up to 1, of 1 or more, are allowed; "
            "0.8 of 128 are usual."
        )
    below = np.arange(0, threshold, _STEP) + _STEP / 2
    above = np.arange(threshold, 1, _STEP) + _STEP / 2

    def error(pair):
        return probability(below, *pair).sum() + (1 - probability(above, *pair)).sum()

    pairs = ((bands, rows) for bands in range(1, permutations + 1) for rows in range(1, permutations // bands + 1))
    return min(pairs, key=error)
