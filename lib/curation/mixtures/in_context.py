"""Batches of related documents: what a model reads before a document is about the same (Shi et al., arXiv 2310.10638).

Algorithm 1, "maximum traveling salesman": documents are nodes, joined to their nearest neighbours. A path begins at the
node with the fewest unvisited neighbours, goes on to the nearest one that is unvisited, and where there is none begins
anew. Rows of tokens are cut from documents in that order, each read once; against them stand the same documents
shuffled. Near-duplicates must be gone first: beside each other they teach copying.
"""

import random
from collections.abc import Iterable

import numpy as np

from lib.curation import clusters, embedding
from lib.curation.document import Document, again

NEIGHBOURS = 10


def order(
    documents: Iterable[Document], *, neighbours: int = NEIGHBOURS, kind: str = "tfidf", seed: int = 0
) -> list[int]:
    """The places of all documents, each once, related ones behind each other. ValueError for fewer than two."""
    vectors = embedding.embed(again(documents, "in-context batches"), kind=kind, seed=seed)
    clusters.number(len(vectors), None)
    return path(vectors, min(neighbours, len(vectors) - 1))


def path(vectors: np.ndarray, neighbours: int = NEIGHBOURS) -> list[int]:
    """Algorithm 1 over vectors of length 1 [documents, d]."""
    places, cosines = clusters.neighbours(vectors, neighbours)
    near: list[dict[int, float]] = [{} for _ in vectors]
    for one, (others, values) in enumerate(zip(places.tolist(), cosines.tolist())):
        for other, value in zip(others, values):
            if other >= 0:
                near[one][other] = near[other][one] = value
    left = {place: len(each) for place, each in enumerate(near)}  # unvisited neighbours of each unvisited node
    found, now = [], None
    while left:
        onward = [] if now is None else [place for place in near[now] if place in left]
        if onward:
            now = max(onward, key=lambda place: (near[now][place], -place))
        else:
            now = min(left, key=lambda place: (left[place], place))
        found.append(now)
        del left[now]
        for place in near[now]:
            if place in left:
                left[place] -= 1
    return found


def shuffled(count: int, seed: int = 0) -> list[int]:
    """The places in an order that the seed draws: what related batches are compared with."""
    return random.Random(seed).sample(range(count), count)


def relatedness(vectors: np.ndarray, places: list[int]) -> float:
    """The mean cosine of each document with the one before it."""
    ordered = vectors[np.array(places)]
    return float((ordered[1:] * ordered[:-1]).sum(1).mean())
