"""Fuzzy deduplication: of documents that share most of their runs of words one stays.

MinHash signatures (by rensa) name candidate pairs by `banding`; each candidate is then verified by the exact Jaccard
similarity of its shingles. Documents stay in this order: longer ones first, of equally long ones a lot that the seed
draws from the document itself; and a document goes where one that stays is at least `threshold` like it. So whatever
goes has a copy that stays. Where `chains` is set, of each connected component, in which neighbours are alike and the
ends may not be, only the first stays: that removes more, and has removed nearly a whole corpus whose texts shared a
notice.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from lib.curation import banding, shingles
from lib.curation.decision import Decision
from lib.curation.document import Document, again
from lib.curation.tally import Tally

THRESHOLD, PERMUTATIONS = 0.8, 128
MOST = 64  # documents of a bucket that are compared with each other; the others with these
WHY = "most runs of words shared with a document that stays"
_AT_ONCE = 512  # documents whose signatures are made together


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs by places of documents, first < second [count, 2], with exact similarities [count].

    order: all documents, those that stay first first.
    """

    places: np.ndarray
    jaccard: np.ndarray
    order: np.ndarray

    def at_least(self, threshold: float) -> np.ndarray:
        """The pairs that are at least so similar [some, 2]."""
        return self.places[self.jaccard >= threshold]


def stage(documents: Iterable[Document], *, tally: Tally | None = None, **options) -> Iterator[Document]:
    """The documents that stay. options: those of `decide`."""
    return decide(again(documents, "fuzzy deduplication"), **options).carry_out(documents, tally or Tally("fuzzy"))


def decide(
    documents: Iterable[Document],
    *,
    seed: int = 0,
    threshold: float = THRESHOLD,
    permutations: int = PERMUTATIONS,
    ngram: int = shingles.NGRAM,
    chains: bool = False,
) -> Decision:
    """Which documents go; holds 8 bytes a band and about 100 a document, and the shingles of all candidates."""
    found = pairs(documents, seed=seed, threshold=threshold, permutations=permutations, ngram=ngram)
    return chosen(found, threshold, chains=chains)


def chosen(found: Pairs, threshold: float, *, chains: bool = False) -> Decision:
    """Which documents go, by candidates that were compared."""
    rank = np.empty(len(found.order), np.int64)
    rank[found.order] = np.arange(len(found.order))
    alike = found.at_least(threshold)
    return Decision.of(_first_of_each(alike, rank) if chains else _covered(alike, rank), WHY)


def pairs(
    documents: Iterable[Document],
    *,
    seed: int = 0,
    threshold: float = THRESHOLD,
    permutations: int = PERMUTATIONS,
    ngram: int = shingles.NGRAM,
) -> Pairs:
    """All candidate pairs for a threshold, with their exact similarities."""
    bands, rows = banding.choose(float(threshold), permutations)
    if isinstance(ngram, bool) or not isinstance(ngram, int) or ngram < 1:
        raise ValueError(f"ngram={ngram!r}; whole numbers from 1 are allowed; {shingles.NGRAM} words are usual.")
    again(documents, "fuzzy deduplication")
    hashes, order = signatures(documents, bands, rows, ngram=ngram, seed=seed)
    places = _candidates(hashes, order)
    wanted = set(places.ravel().tolist())
    held = {place: shingles.hashed(document.text, ngram) for place, document in enumerate(documents) if place in wanted}
    exact = [shingles.jaccard(held[one], held[other]) for one, other in places.tolist()]
    return Pairs(places, np.array(exact, float), order)


def signatures(
    documents: Iterable[Document], bands: int, rows: int, *, ngram: int = shingles.NGRAM, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(A hash of each band of each document [count, bands], the order in which documents stay [count])."""
    hashes, lengths, lots = [np.zeros((0, bands), np.uint64)], [], []
    batch: list[list[str]] = []
    for document in documents:
        batch.append(shingles.of(document.text, ngram) or [f"\0{len(lots)}"])  # no words: like nothing else
        lengths.append(len(document.text))
        lots.append(document.lot(seed))
        if len(batch) == _AT_ONCE:
            hashes.append(_banded(batch, bands, rows, seed))
            batch = []
    if batch:
        hashes.append(_banded(batch, bands, rows, seed))
    order = np.lexsort((np.array(lots, np.uint64), -np.array(lengths, np.int64)))
    return np.concatenate(hashes), order


def _banded(batch: list[list[str]], bands: int, rows: int, seed: int) -> np.ndarray:
    import rensa  # loads for this stage alone

    found = rensa.RMinHash.digest_matrix_from_token_sets(batch, num_perm=bands * rows, seed=seed)
    numbers = np.array(found.to_rows(), np.uint32).reshape(len(batch), bands, rows)
    return np.array(
        [[xxhash.xxh3_64_intdigest(band.tobytes()) for band in each] for each in numbers], np.uint64
    ).reshape(len(batch), bands)


def _candidates(hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Places of documents that agree in a band, as pairs [count, 2]; each with the first `MOST` of its bucket."""
    found: set[tuple[int, int]] = set()
    for band in hashes.T:
        ordered = band[order]
        inside = np.argsort(ordered, kind="stable")
        borders = np.flatnonzero(np.diff(ordered[inside])) + 1
        for bucket in np.split(order[inside], borders):
            if len(bucket) > 1:
                for at, one in enumerate(bucket[:MOST].tolist()):
                    found.update((min(one, other), max(one, other)) for other in bucket[at + 1 :].tolist())
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _covered(alike: np.ndarray, rank: np.ndarray) -> dict[int, int]:
    """Each document that goes, and the one that stays and is like it, in the order of `rank`."""
    neighbours = defaultdict(list)
    for one, other in alike.tolist():
        neighbours[one].append(other)
        neighbours[other].append(one)
    gone: dict[int, int] = {}
    stay: set[int] = set()
    for place in sorted(neighbours, key=rank.__getitem__):
        kept = [other for other in neighbours[place] if other in stay]
        if kept:
            gone[place] = min(kept, key=rank.__getitem__)
        else:
            stay.add(place)
    return gone


def components(alike: np.ndarray, count: int) -> list[list[int]]:
    """The connected components of more than one of `count` documents, by pairs [some, 2]."""
    from scipy import sparse  # loads for deduplication alone

    ones = np.ones(len(alike))
    graph = sparse.coo_matrix((ones, (alike[:, 0], alike[:, 1])), (count, count))
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    found = defaultdict(list)
    for place in sorted({*alike.ravel().tolist()}):
        found[int(labels[place])].append(place)
    return list(found.values())


def _first_of_each(alike: np.ndarray, rank: np.ndarray) -> dict[int, int]:
    """Each document but the first of its component, and that first one."""
    gone: dict[int, int] = {}
    for group in components(alike, len(rank)):
        first = min(group, key=rank.__getitem__)
        gone |= {place: first for place in group if place != first}
    return gone
