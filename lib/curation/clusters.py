"""Documents in clusters of neighbours, by k-means on their vectors (faiss), and what lies at the centre of each.

    found = clusters.of(documents, clusters=20, seed=0)
    for each in found.groups(): ... found.central(each), found.outlying(each)

Spherical k-means: centroids have length 1, and a document belongs to the one with the largest product. Points are given
to faiss in an order of their own, so the clusters depend neither on the order of documents nor on their shards.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from lib.curation import embedding
from lib.curation.document import Document, again

ROUNDS = 20  # of k-means
_MOST_POINTS = 1 << 20  # for each centroid: all, where faiss would draw some


@dataclass(frozen=True)
class Clusters:
    """Documents by place: vectors [documents, d], label: the cluster of each, nearness: its cosine with the centroid.

    centroids [clusters, d]. lots: numbers that the seed draws from the documents themselves, by which ties are broken.
    order: the places in an order that depends on the documents alone; what is computed in it has the same last bits
    however they come.
    """

    vectors: np.ndarray
    centroids: np.ndarray
    label: np.ndarray
    nearness: np.ndarray
    lots: np.ndarray
    order: np.ndarray

    def groups(self) -> list[np.ndarray]:
        """The places of the documents of each cluster that has some, the nearest to its centroid first."""
        ordered = np.lexsort((self.lots, -self.nearness, self.label))
        borders = np.flatnonzero(np.diff(self.label[ordered])) + 1
        return np.split(ordered, borders)

    def central(self, group: np.ndarray, count: int = 3) -> list[int]:
        """The places of the documents nearest to the centroid."""
        return group[:count].tolist()

    def outlying(self, group: np.ndarray, count: int = 3) -> list[int]:
        """The places of the documents farthest from the centroid, the farthest first."""
        return group[::-1][:count].tolist()


def of(
    documents: Iterable[Document],
    *,
    clusters: int | None = None,
    kind: str = "tfidf",
    seed: int = 0,
) -> Clusters:
    """The clusters of documents; holds their vectors, 1 kB (`tfidf`) or 1.5 kB (`static`, `minilm`) each.

    clusters: how many; None for the square root of the number of documents. Raises ValueError for fewer than two
    documents, and for more clusters than documents.
    """
    lots: list[int] = []
    vectors = embedding.embed(_noting(again(documents, "clustering"), seed, lots), kind=kind, seed=seed)
    return of_vectors(vectors, np.array(lots, np.uint64), clusters=clusters, seed=seed)


def of_vectors(vectors: np.ndarray, lots: np.ndarray, *, clusters: int | None = None, seed: int = 0) -> Clusters:
    """The clusters of vectors of length 1 [documents, d]; lots: see `Clusters`. Errors are those of `of`."""
    count = number(len(vectors), clusters)
    order = _order(vectors, lots)
    centroids = _centroids(vectors[order], count, seed)
    products = vectors[order] @ centroids.T
    label, nearness = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    label[order], nearness[order] = products.argmax(1), products.max(1)
    return Clusters(vectors, centroids, label, nearness, lots, order)


def number(documents: int, clusters: int | None) -> int:
    """How many clusters so many documents are put into; ValueError as `of` says."""
    if documents < 2:
        raise ValueError(
            f"a corpus of {documents} document{'s' * (documents != 1)}; two or more are needed to compare them with "
            "each other; give more, or leave this stage out."
        )
    if clusters is None:
        return max(1, round(documents**0.5))
    if isinstance(clusters, bool) or not isinstance(clusters, int) or not 1 <= clusters <= documents:
        raise ValueError(
            f"clusters={clusters!r} of {documents} documents; whole numbers from 1 to {documents} are allowed; the "
            f"square root, {round(documents**0.5)}, is usual."
        )
    return clusters


def neighbours(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(Places, cosines) of the `count` nearest other rows of each row, the nearest first [rows, count]; -1 for none."""
    import faiss  # loads for these stages alone

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    cosines, places = index.search(np.ascontiguousarray(vectors), count + 1)
    own = places == np.arange(len(vectors))[:, None]
    own[~own.any(1), -1] = True  # a row of equal ones may miss itself
    return places[~own].reshape(-1, count), cosines[~own].reshape(-1, count)


def _noting(documents: Iterable[Document], seed: int, lots: list[int]) -> Iterator[Document]:
    for document in documents:
        lots.append(document.lot(seed))
        yield document


def _order(vectors: np.ndarray, lots: np.ndarray) -> np.ndarray:
    return np.lexsort((lots, np.array([xxhash.xxh3_64_intdigest(row.tobytes()) for row in vectors], np.uint64)))


def _centroids(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    import faiss  # loads for these stages alone

    machine = faiss.Kmeans(
        points.shape[1], count, niter=ROUNDS, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=_MOST_POINTS,
    )  # fmt: skip
    machine.train(np.ascontiguousarray(points))
    return machine.centroids
