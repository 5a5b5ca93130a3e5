"""Backend of the generation loop for the packed engine: slots whose sequences come and go. Needs no torch.

A prompt is read from where it differs from a sequence already in some slot: the keys of their common prefix are copied,
or stay in place; an answer's own keys count too, so the next turn of a chat reads only what is new. Prompts without a
common prefix are read in one pass. A row's logits have the same bits whatever else is in the batch and however a prompt
is cut into pieces, so an answer does not depend on other requests.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np

from lib.decoding.requests import Request
from lib.runtime.cache_codes import GROUP
from lib.runtime.engine import Batch
from lib.runtime.weights import Weights


class Slots:
    """A `generation_loop.Backend` of `count` requests at once on `weights`.

    piece: tokens of prompts that are read between two steps, shared evenly among the prompts that are being read, so
    that each of n gets its n-th part, rounded down, or more, and the oldest get a token where n is larger; None reads
    prompts whole. Requests enter in the order in which they came, whatever their sizes. positions: the most positions
    of all slots that may be in memory: those that the active requests may need, and those of ended ones that are kept
    for their prefixes (the least recently used are given back first); a request waits until it fits. None for no bound,
    and for a cache that grows as it must. cache_bits: of keys and values, 16, 8 or 4.
    """

    def __init__(
        self,
        weights: Weights,
        count: int,
        *,
        piece: int | None = None,
        positions: int | None = None,
        cache_bits: int = 16,
    ):
        # with a bound nothing is ever copied into a larger cache: memory is taken as positions are filled
        capacity = None if positions is None else min(weights.limit, positions)
        self.batch = Batch(weights, count, capacity=capacity, cache_bits=cache_bits)
        self.free, self.of = [*range(count)], {}
        self.piece, self.positions = piece, positions
        self.read = [np.empty(0, np.int64)] * count  # the tokens whose keys are in each slot
        self.filled = [0] * count  # positions of each slot that are in memory
        self.reading: dict[Request, int] = {}  # tokens of the prompt that were read

    def admit(self, waiting: deque[Request]) -> Iterator[tuple[Request, np.ndarray]]:
        """Admit prompts in waiting order; those without a common prefix are read together."""
        for request in [each for each in self.reading if each.answer.reason]:
            self.leave(request)
        while True:
            while waiting and self.free and self._enter(waiting[0]):
                waiting.popleft()
            if not self.reading:
                return
            yield from self._read()
            if self.piece is not None:
                return

    def _enter(self, request: Request) -> bool:
        """Give a request a slot and what it shares with others; False where it should wait."""
        prompt = np.asarray(request.prompt, np.int64)
        known, source = max((_shared(text, prompt), slot) for slot, text in enumerate(self.read))
        if _wants_prompt(request):
            known = 0  # the logits of all its tokens are needed
        elif max((_shared(np.asarray(each.prompt), prompt) for each in self.reading), default=0) > known:
            return False  # a prompt that is being read now will share more
        if not self._fits(request, source if known else None):
            return False
        request.enter()
        self.reading[request] = self._place(request, prompt, known, source)
        return True

    def _fits(self, request: Request, source: int | None) -> bool:
        """Whether there is memory for a request, after other sequences than `source` were given back."""
        if self.positions is None:
            return True
        needed = _most(request) + sum(max(_most(each), self.filled[slot]) for each, slot in self.of.items())
        for slot in [slot for slot in self.free if slot != source and self.filled[slot]]:
            if needed + self.kept <= self.positions:
                break
            self._forget(slot)
        # the source's own positions are counted twice here until it is copied or continued
        return needed <= self.positions or not self.of

    @property
    def kept(self) -> int:
        """Positions of ended requests that are kept for their prefixes."""
        return sum(self.filled[slot] for slot in self.free)

    def _forget(self, slot: int) -> None:
        self.batch.cache.forget(slot)
        self.read[slot], self.filled[slot], self.batch.lengths[slot] = self.read[slot][:0], 0, 0

    def _place(self, request: Request, prompt: np.ndarray, known: int, source: int) -> int:
        """Assign a request a slot, best one that holds the first tokens of its prompt; returns how many."""
        slot = source if known and source in self.free else self.free[0]
        self.free.remove(slot)
        if known and slot != source:
            self.batch.cache.copy(source, slot, known)
            self.filled[slot] = max(self.filled[slot], known)
        self.of[request], self.batch.lengths[slot], self.read[slot] = slot, known, prompt[:known]
        return known

    def _read(self) -> Iterator[tuple[Request, np.ndarray]]:
        """Read the next piece of every prompt; yields the requests whose prompts are read to their end."""
        parts = self._parts()
        for wanted in (False, True):  # logits of every token are computed only where they are wanted
            some = {request: count for request, count in parts.items() if _wants_prompt(request) is wanted}
            if not some:
                continue
            tokens = {each: each.prompt[self.reading[each] : self.reading[each] + some[each]] for each in some}
            logits = self.batch.extend({self.of[each]: part for each, part in tokens.items()}, last=not wanted)
            ends = np.cumsum([len(part) for part in tokens.values()]) if wanted else np.arange(1, len(tokens) + 1)
            for (request, part), end in zip(tokens.items(), ends.tolist()):
                yield from self._advanced(request, len(part), logits[end - len(part) if wanted else end - 1 : end])

    def _advanced(self, request: Request, count: int, rows: np.ndarray) -> Iterator[tuple[Request, np.ndarray]]:
        """`count` more tokens of a prompt were read; rows: their logits, or those of the last one."""
        done, slot = self.reading[request] + count, self.of[request]
        if _wants_prompt(request):
            request.scores.read(rows, request.prompt[done - count + 1 : done + 1])
        self.read[slot] = np.asarray(request.prompt[:done], np.int64)
        self.filled[slot] = max(self.filled[slot], done)
        self.reading[request] = done
        if done == len(request.prompt):
            del self.reading[request]
            yield request, rows[-1:]

    def _parts(self) -> dict[Request, int]:
        """How many tokens each prompt may read now; what short ones leave over goes to longer ones."""
        left = {request: len(request.prompt) - done for request, done in self.reading.items()}
        if self.piece is None:
            return left
        # more prompts than tokens to read: the oldest go first, else a long one waits for as long as short ones come
        room, found, oldest = self.piece, {}, list(left)[: self.piece]
        for place, request in enumerate(sorted(oldest, key=left.get)):
            found[request] = min(left[request], -(-room // (len(oldest) - place)))
            room -= found[request]
        return {request: found[request] for request in oldest}

    def step(self, inputs: dict[Request, np.ndarray]) -> np.ndarray:
        """Append tokens to slots, all in one pass."""
        found = self.batch.extend({self.of[request]: tokens.tolist() for request, tokens in inputs.items()}, last=False)
        for request in inputs:
            slot = self.of[request]
            self.filled[slot] = max(self.filled[slot], self.batch.lengths[slot])
        return found

    def keep(self, request: Request, length: int) -> None:
        """Rewind a slot to `length` positions; later ones are overwritten."""
        self.batch.lengths[self.of[request]] = length

    def leave(self, request: Request) -> None:
        """Free the slot; its keys may serve a prompt with the same prefix."""
        slot = self.of.pop(request)
        self.free.append(slot)
        if self.reading.pop(request, None) is None:
            self.read[slot] = request.text[: min(self.batch.lengths[slot], request.known)].copy()
        if self.positions is not None and self.kept > self.positions:
            self._forget(self.free[0])


def _wants_prompt(request: Request) -> bool:
    return request.scores is not None and request.scores.wants_prompt


def _most(request: Request) -> int:
    """Positions that a request may fill."""
    return len(request.prompt) + request.new_tokens


def _shared(text: np.ndarray, prompt: np.ndarray) -> int:
    """Length of the common prefix of a prompt and `text`, at most all but its last token; 0 for very short ones."""
    most = min(len(text), len(prompt) - 1)
    differs = np.flatnonzero(text[:most] != prompt[:most])
    found = int(differs[0]) if len(differs) else most
    return found if found >= GROUP else 0  # not worth a copy
