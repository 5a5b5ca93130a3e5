"""What a stage did: how many documents it read, kept, changed and dropped, why, and some of them to read.

The samples are drawn by a number that depends on the seed and the document alone. So tallies of shards, added up in any
order, are the tally of the whole.
"""

import heapq
from collections import Counter

import xxhash

from lib.curation.document import Document

SAMPLES = 3  # documents of each reason that are kept to be read
EXCERPT = 2000  # characters of each


class Tally:
    """The counts and samples of one stage; a stage calls `keep` or `drop` for every document that it read."""

    def __init__(self, stage: str = "", *, samples: int = SAMPLES, seed: int = 0):
        self.stage, self.most, self.seed = stage, samples, seed
        self.read = self.kept = self.characters = 0
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.samples: dict[str, list[tuple]] = {}

    def keep(self, document: Document, before: Document | None = None, why: str = "") -> Document:
        """Count a document that stays, and that was `before` where the stage changed its text."""
        self.read += 1
        self.kept += 1
        self.characters += len(document.text)
        if before is not None and before.text != document.text:
            self.changed[why] += 1
            self._sample(why, before, document.text)
        return document

    def drop(self, document: Document, why: str) -> None:
        """Count a document that goes."""
        self.read += 1
        self.dropped[why] += 1
        self._sample(why, document, None)

    def _sample(self, why: str, before: Document, after: str | None) -> None:
        """Keep the documents with the lowest lots: a heap with the highest of them in front."""
        drawn = xxhash.xxh3_64_intdigest(f"{before.id}\0{before.text}".encode(), self.seed)
        held = self.samples.setdefault(why, [])
        if len(held) < self.most or -held[0][0] > drawn:
            sample = -drawn, before.id, before.text[:EXCERPT], after and after[:EXCERPT]
            (heapq.heappush if len(held) < self.most else heapq.heapreplace)(held, sample)

    def add(self, other: "Tally") -> "Tally":
        """Add the tally of other documents of the same stage."""
        self.read, self.kept = self.read + other.read, self.kept + other.kept
        self.characters += other.characters
        self.dropped += other.dropped
        self.changed += other.changed
        for why, some in other.samples.items():
            self.samples[why] = heapq.nlargest(self.most, [*self.samples.get(why, []), *some], key=lambda each: each[0])
            heapq.heapify(self.samples[why])
        return self

    def examples(self, why: str) -> list[dict]:
        """Documents that a reason met, as dicts of id, before and after (None: dropped), in the order drawn."""
        found = sorted(self.samples.get(why, []), key=lambda each: -each[0])
        return [{"id": id, "before": before, "after": after} for _, id, before, after in found]

    def rows(self) -> list[dict]:
        """A row {stage, read, what, why, documents} for what stayed and for each reason, most frequent first."""
        common = {"stage": self.stage, "read": self.read}
        found = [{**common, "what": "kept", "why": "", "documents": self.kept}]
        for what, counts in (("dropped", self.dropped), ("changed", self.changed)):
            ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            found += [{**common, "what": what, "why": why, "documents": count} for why, count in ordered]
        return found

    def state(self) -> dict:
        """All that the tally holds, for JSON; `of` reads it back."""
        names = ("stage", "most", "seed", "read", "kept", "characters", "dropped", "changed")
        samples = {why: sorted(map(list, some)) for why, some in sorted(self.samples.items())}
        return {name: getattr(self, name) for name in names} | {"samples": samples}

    @classmethod
    def of(cls, state: dict) -> "Tally":
        """The tally that `state` described."""
        found = cls(state["stage"], samples=state["most"], seed=state["seed"])
        found.read, found.kept, found.characters = state["read"], state["kept"], state["characters"]
        found.dropped, found.changed = Counter(state["dropped"]), Counter(state["changed"])
        found.samples = {why: [tuple(each) for each in some] for why, some in state["samples"].items()}
        for some in found.samples.values():
            heapq.heapify(some)
        return found
