"""D4: SemDeDup, clusters anew, then prototypes (Tirumala et al., arXiv 2308.12284, section 3.4).

Duplicates make clusters of their own and pull the centroids to them, so "distance to the centroid" is first made to
mean something: SemDeDup leaves the share R_dedup, k-means is run again on what is left, and prototypes leave R_proto of
that. Of all documents R = R_dedup · R_proto stay; the paper holds R_dedup at 0.75.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from lib.curation import clusters as grouping
from lib.curation import embedding, prototypes, semdedup
from lib.curation.decision import NOBODY, Decision
from lib.curation.document import Document, again
from lib.curation.tally import Tally

DEDUPLICATED, KEEP = 0.75, 0.6
WHY = "said elsewhere, or nearest to the prototype of its cluster"


def stage(documents: Iterable[Document], *, tally: Tally | None = None, **options) -> Iterator[Document]:
    """The documents that stay. options: those of `decide`."""
    return decide(again(documents, "D4"), **options).carry_out(documents, tally or Tally("d4"))


def decide(
    documents: Iterable[Document],
    *,
    seed: int = 0,
    keep: float = KEEP,
    deduplicated: float = DEDUPLICATED,
    clusters: int | None = None,
    kind: str = "tfidf",
) -> Decision:
    """Which documents go. keep: R, deduplicated: R_dedup. Errors are those of `clusters.of`; `keep` above R_dedup."""
    if not 0 < keep <= deduplicated <= 1:
        raise ValueError(
            f"keep={keep!r} of which deduplication leaves {deduplicated!r}; 0 < keep <= deduplicated <= 1 is allowed; "
            f"{KEEP} of {DEDUPLICATED} is usual."
        )
    found = grouping.of(again(documents, "D4"), clusters=clusters, kind=kind, seed=seed)
    return chosen(found, keep, deduplicated, clusters=clusters, seed=seed)


def chosen(
    found: grouping.Clusters, keep: float, deduplicated: float, *, clusters: int | None = None, seed: int = 0
) -> Decision:
    """Which documents go, by clusters that were found."""
    count = len(found.vectors)
    said = semdedup.chosen(found, keep=deduplicated)
    left = np.setdiff1d(np.arange(count), said.dropped)
    pairs = dict(zip(said.dropped.tolist(), said.partner.tolist()))
    if len(left) > 1:
        most = None if clusters is None else min(clusters, len(left))
        anew = grouping.of_vectors(found.vectors[left], found.lots[left], clusters=most, seed=seed)
        easy = prototypes.chosen(anew, min(1.0, keep * count / len(left)))
        pairs |= {int(left[place]): partner for place, partner in zip(easy.dropped, easy.partner.tolist())}
        gone = set(left[easy.dropped].tolist())
        pairs = {place: NOBODY if partner in gone else partner for place, partner in pairs.items()}
    return Decision.of(pairs, WHY)


def basis(*, kind: str = "tfidf", **_) -> str:
    """What a run of `pipeline` depends on beside its options: the embedding's files."""
    return embedding.basis(kind)
