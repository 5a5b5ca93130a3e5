"""Backend of the generation loop for the packed engine: slots whose sequences come and go. Needs no torch.

A prompt is read from where it differs from a sequence already in some slot: the keys of their common prefix are copied,
or stay in place. Prompts without a common prefix are read in one pass. A row's logits have the same bits whatever else
is in the batch, so an answer does not depend on other requests.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np

from lib.decoding.requests import Request
from lib.runtime.engine import Batch
from lib.runtime.weights import Weights

GROUP = 16  # keys lie in groups of so many positions; less in common is not worth a copy


class Slots:
    """A `generation_loop.Backend` of `count` requests at once on `weights`."""

    def __init__(self, weights: Weights, count: int):
        self.batch, self.free, self.of = Batch(weights, count), [*range(count)], {}
        self.read = [np.empty(0, np.int64)] * count  # the tokens whose keys lie in each slot, as far as is remembered

    def admit(self, waiting: deque[Request]) -> Iterator[tuple[Request, np.ndarray]]:
        """Prompts in the order in which they wait, those together that share nothing with one another."""
        while waiting and self.free:
            together: dict[Request, list[int]] = {}
            while waiting and self.free:
                prompt = np.asarray(waiting[0].prompt, np.int64)
                known, source = max((_shared(text, prompt), slot) for slot, text in enumerate(self.read))
                if max((_shared(np.asarray(each.prompt), prompt) for each in together), default=0) > known:
                    break  # one that is read now will have more of it
                request = waiting.popleft()
                together[request] = request.prompt[self._place(request, prompt, known, source) :]
            logits = self.batch.extend({self.of[request]: tokens for request, tokens in together.items()})
            for request in together:
                self.read[self.of[request]] = np.asarray(request.prompt, np.int64)
            yield from ((request, logits[row : row + 1]) for row, request in enumerate(together))

    def _place(self, request: Request, prompt: np.ndarray, known: int, source: int) -> int:
        """Give a request a slot that holds the first tokens of its prompt; how many."""
        slot = source if source in self.free else self.free[0]
        self.free.remove(slot)
        if known and slot != source:
            filled = -(-known // GROUP) * GROUP * self.batch.weights.size
            for part in (self.batch.cache.keys, self.batch.cache.values):
                part[:, slot, :, :filled] = part[:, source, :, :filled]
        self.of[request], self.batch.lengths[slot], self.read[slot] = slot, known, prompt[:known]
        return known

    def step(self, inputs: dict[Request, np.ndarray]) -> np.ndarray:
        """Append tokens to slots, all in one pass."""
        return self.batch.extend({self.of[request]: tokens.tolist() for request, tokens in inputs.items()}, last=False)

    def keep(self, request: Request, length: int) -> None:
        """Positions from `length` on are written anew."""
        self.batch.lengths[self.of[request]] = length

    def leave(self, request: Request) -> None:
        """Its slot is free; what lies there may serve a prompt that begins alike."""
        self.free.append(self.of.pop(request))


def _shared(text: np.ndarray, prompt: np.ndarray) -> int:
    """How many tokens at the beginning of a prompt `text` has too, all but its last at most; 0 for a few."""
    most = min(len(text), len(prompt) - 1)
    differs = np.flatnonzero(text[:most] != prompt[:most])
    found = int(differs[0]) if len(differs) else most
    return found if found >= GROUP else 0
