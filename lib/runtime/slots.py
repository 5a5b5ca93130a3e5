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

GROUP = 16  # keys are stored in groups of so many positions; a shorter prefix is not worth a copy


class Slots:
    """A `generation_loop.Backend` of `count` requests at once on `weights`."""

    def __init__(self, weights: Weights, count: int):
        self.batch, self.free, self.of = Batch(weights, count), [*range(count)], {}
        self.read = [np.empty(0, np.int64)] * count  # the tokens whose keys are in each slot

    def admit(self, waiting: deque[Request]) -> Iterator[tuple[Request, np.ndarray]]:
        """Admit prompts in waiting order; those without a common prefix are read together."""
        while waiting and self.free:
            together: dict[Request, list[int]] = {}
            while waiting and self.free:
                prompt = np.asarray(waiting[0].prompt, np.int64)
                known, source = max((_shared(text, prompt), slot) for slot, text in enumerate(self.read))
                if max((_shared(np.asarray(each.prompt), prompt) for each in together), default=0) > known:
                    break  # a prompt that is being read now will share more
                request = waiting.popleft()
                together[request] = request.prompt[self._place(request, prompt, known, source) :]
            logits = self.batch.extend({self.of[request]: tokens for request, tokens in together.items()})
            for request in together:
                self.read[self.of[request]] = np.asarray(request.prompt, np.int64)
            yield from ((request, logits[row : row + 1]) for row, request in enumerate(together))

    def _place(self, request: Request, prompt: np.ndarray, known: int, source: int) -> int:
        """Assign a request a slot, best one that holds the first tokens of its prompt; returns how many."""
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
        """Rewind a slot to `length` positions; later ones are overwritten."""
        self.batch.lengths[self.of[request]] = length

    def leave(self, request: Request) -> None:
        """Free the slot; its keys may serve a prompt with the same prefix."""
        self.free.append(self.of.pop(request))


def _shared(text: np.ndarray, prompt: np.ndarray) -> int:
    """Length of the common prefix of a prompt and `text`, at most all but its last token; 0 for very short ones."""
    most = min(len(text), len(prompt) - 1)
    differs = np.flatnonzero(text[:most] != prompt[:most])
    found = int(differs[0]) if len(differs) else most
    return found if found >= GROUP else 0
