"""Which of many documents go: what the stages decide that compare documents with each other.

A decision names documents by their places, so that it can be carried out on one shard after another.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.curation.document import Document
from lib.curation.tally import Tally

NOBODY = -1  # the partner of a document in whose place none stays


@dataclass(frozen=True)
class Decision:
    """Documents that go, and for each the one that stays in its place, where there is one.

    dropped: their places among all documents, ascending [count]. partner: places of those that stay, or `NOBODY`
    [count]. why: the reason, in words.
    """

    dropped: np.ndarray
    partner: np.ndarray
    why: str

    @classmethod
    def of(cls, pairs: dict[int, int], why: str) -> "Decision":
        """The decision that drops each key for its value."""
        found = np.array(sorted(pairs.items()), np.int64).reshape(-1, 2)
        return cls(found[:, 0].copy(), found[:, 1].copy(), why)

    def carry_out(self, documents: Iterable[Document], tally: Tally, first: int = 0) -> Iterator[Document]:
        """The documents that stay, of some of which the first has the place `first`."""
        at = int(np.searchsorted(self.dropped, first))
        for place, document in enumerate(documents, first):
            if at < len(self.dropped) and self.dropped[at] == place:
                at += 1
                tally.drop(document, self.why)
            else:
                yield tally.keep(document)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `read` takes: arrays by name."""
        return {"dropped": self.dropped, "partner": self.partner, "why": np.frombuffer(self.why.encode(), np.uint8)}

    @classmethod
    def read(cls, arrays: dict[str, np.ndarray]) -> "Decision":
        """The decision that `arrays` were made of."""
        return cls(arrays["dropped"], arrays["partner"], arrays["why"].tobytes().decode())
