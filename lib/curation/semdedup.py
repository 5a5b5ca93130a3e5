"""SemDeDup: of documents that say nearly the same, one stays (Abbas et al., arXiv 2303.09540, section 3).

1. Embed each document, and cluster the vectors by k-means.
2. In each cluster order the documents by their cosine with the centroid, the farthest first: of duplicates the one that
   is least like the others stays ("keep the image with the lowest cosine similarity to the cluster centroid").
3. A document goes whose cosine with one before it is above 1 - ε.

The cost is that of pairs within clusters. Two duplicates on a border between clusters aren't compared; `borders` more
clusters, those next to a document's own, are looked at too, where the paper looks at none.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from lib.curation import clusters as grouping
from lib.curation import embedding
from lib.curation.decision import Decision
from lib.curation.document import Document, again
from lib.curation.tally import Tally

EPSILON = 0.05
WHY = "says nearly what a document says that stays"
_AT_ONCE = 1024  # rows of products


def stage(documents: Iterable[Document], *, tally: Tally | None = None, **options) -> Iterator[Document]:
    """The documents that stay. options: those of `decide`."""
    decided = decide(again(documents, "semantic deduplication"), **options)
    return decided.carry_out(documents, tally or Tally("semdedup"))


def decide(
    documents: Iterable[Document],
    *,
    seed: int = 0,
    epsilon: float | None = None,
    keep: float | None = None,
    clusters: int | None = None,
    kind: str = "tfidf",
    borders: int = 1,
) -> Decision:
    """Which documents go.

    epsilon: two documents with a cosine above 1 - ε say the same; `EPSILON` where nothing is given. keep: the share of
    documents that is to stay instead: those most like one before them go. borders: see above. Errors are those of
    `clusters.of`.
    """
    found = grouping.of(again(documents, "semantic deduplication"), clusters=clusters, kind=kind, seed=seed)
    return chosen(found, epsilon=epsilon, keep=keep, borders=borders)


def chosen(
    found: grouping.Clusters, *, epsilon: float | None = None, keep: float | None = None, borders: int = 1
) -> Decision:
    """Which documents go, by clusters that were found."""
    nearest, before = earlier(found, borders)
    gone = _gone(nearest, found.lots, epsilon, keep)
    pairs = {}
    for place in np.flatnonzero(gone).tolist():
        stays = int(before[place])
        while gone[stays]:
            stays = int(before[stays])
        pairs[place] = stays
    return Decision.of(pairs, WHY)


def earlier(found: grouping.Clusters, borders: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(Largest cosine of each document with one before it, the place of that one, -1 for none) [documents]."""
    count, order = len(found.vectors), found.order
    vectors = found.vectors[order]
    rank = np.empty(count, np.int64)
    rank[np.lexsort((found.lots[order], found.nearness[order]))] = np.arange(count)  # the farthest first
    nearest, before = np.full(count, -1.0, np.float32), np.full(count, -1, np.int64)
    for members, others in _compared(vectors, found, borders):
        for start in range(0, len(members), _AT_ONCE):
            some = members[start : start + _AT_ONCE]
            cosines = vectors[some] @ vectors[others].T
            cosines[rank[others][None] >= rank[some][:, None]] = -1
            best = cosines.argmax(1)
            at = nearest[order[some]] = cosines[np.arange(len(some)), best]
            before[order[some]] = np.where(at > -1, order[others[best]], -1)
    return nearest, before


def _compared(vectors, found: grouping.Clusters, borders: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(Indices of a cluster's vectors, of what they are compared with): its own, and those on its borders."""
    products = vectors @ found.centroids.T
    reached = min(borders, len(found.centroids) - 1) + 1
    near = np.argpartition(-products, reached - 1, axis=1)[:, :reached]
    label = found.label[found.order]
    for cluster in np.unique(label):
        yield np.flatnonzero(label == cluster), np.flatnonzero((near == cluster).any(1))


def basis(*, kind: str = "tfidf", **_) -> str:
    """What a run of `pipeline` depends on beside its options: the embedding's files."""
    return embedding.basis(kind)


def _gone(nearest: np.ndarray, lots: np.ndarray, epsilon: float | None, keep: float | None) -> np.ndarray:
    """Which documents go, by their cosine with one before them [documents]; of equal ones the lots decide."""
    if epsilon is not None and keep is not None:
        raise ValueError(f"epsilon={epsilon} and keep={keep} were given; one of them says the other; leave one out.")
    if keep is None:
        epsilon = EPSILON if epsilon is None else epsilon
        if not 0 <= epsilon < 2:
            raise ValueError(f"epsilon={epsilon!r}; 0 up to 2 is allowed (1 - cosine); {EPSILON} is usual.")
        return nearest > 1 - epsilon
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r}; above 0 up to 1 is allowed, 1 for all; 0.75 is D4's.")
    gone = np.zeros(len(nearest), bool)
    gone[np.lexsort((lots, -nearest))[: len(nearest) - round(keep * len(nearest))]] = True
    return gone & (nearest > -1)
