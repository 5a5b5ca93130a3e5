"""Self-supervised prototypes: what is most like all others goes (Sorscher et al., arXiv 2206.14486, section 5).

k-means makes prototypes; how far a document is from its own says how hard it is, without a label. With plenty of data
the hard ones are kept, with little the easy ones (the paper's finding for images; on text, D4's).
"""

from collections.abc import Iterable, Iterator

import numpy as np

from lib import files
from lib.curation import clusters as grouping
from lib.curation import embedding
from lib.curation.decision import NOBODY, Decision
from lib.curation.document import Document, again
from lib.curation.tally import Tally

KEEP = 0.8
WHICH = {"hard": "nearest to the prototype of its cluster", "easy": "farthest from the prototype of its cluster"}


def stage(documents: Iterable[Document], *, tally: Tally | None = None, **options) -> Iterator[Document]:
    """The documents that stay. options: those of `decide`."""
    decided = decide(again(documents, "prototypes"), **options)
    return decided.carry_out(documents, tally or Tally("prototypes"))


def decide(
    documents: Iterable[Document],
    *,
    seed: int = 0,
    keep: float = KEEP,
    which: str = "hard",
    clusters: int | None = None,
    kind: str = "tfidf",
) -> Decision:
    """Which documents go: all but the share `keep` of the hardest, or easiest. Errors are those of `clusters.of`."""
    found = grouping.of(again(documents, "prototypes"), clusters=clusters, kind=kind, seed=seed)
    return chosen(found, keep, which)


def chosen(found: grouping.Clusters, keep: float = KEEP, which: str = "hard") -> Decision:
    """Which documents go, by clusters that were found."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r}; above 0 up to 1 is allowed, 1 for all; {KEEP} is usual.")
    if which not in WHICH:
        raise ValueError(f"which={which!r} is unknown; {files.choices(which, WHICH)}")
    hardness = 1 - found.nearness if which == "hard" else found.nearness
    order = np.lexsort((found.lots, hardness))
    gone = order[: len(order) - round(keep * len(order))]
    return Decision.of({int(place): NOBODY for place in gone}, WHICH[which])


def basis(*, kind: str = "tfidf", **_) -> str:
    """What a run of `pipeline` depends on beside its options: the embedding's files."""
    return embedding.basis(kind)
