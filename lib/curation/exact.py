"""Exact deduplication: of documents with equal texts one stays.

Texts are equal as they are, or, `normalized`, without regard to case and white space. They are compared by 128 bits of
a hash (xxHash 3): of 10⁹ different texts two agree with a chance of 10⁻²¹. Which one stays is a lot that the seed draws
from the document itself, so it depends neither on the order of documents nor on how they lie in shards.
"""

from collections.abc import Iterable, Iterator

import xxhash

from lib.curation.decision import Decision
from lib.curation.document import Document, again
from lib.curation.tally import Tally


def stage(
    documents: Iterable[Document], *, tally: Tally | None = None, seed: int = 0, normalized: bool = False
) -> Iterator[Document]:
    """One of the documents with each text."""
    decided = decide(again(documents, "exact deduplication"), seed=seed, normalized=normalized)
    return decided.carry_out(documents, tally or Tally("exact"))


def decide(documents: Iterable[Document], *, seed: int = 0, normalized: bool = False) -> Decision:
    """Which documents go; holds about 200 bytes a document."""
    best: dict[bytes, tuple[int, int]] = {}
    gone: dict[int, bytes] = {}
    for place, document in enumerate(documents):
        text = " ".join(document.text.lower().split()) if normalized else document.text
        key, mine = xxhash.xxh3_128_digest(text.encode()), (document.lot(seed), place)
        other = best.setdefault(key, mine)
        if other is not mine:
            best[key] = min(mine, other)
            gone[max(mine, other)[1]] = key
    pairs = {place: best[key][1] for place, key in gone.items()}
    return Decision.of(pairs, "the same text but for case and white space" if normalized else "the same text")
