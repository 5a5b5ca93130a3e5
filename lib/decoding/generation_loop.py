"""The generation loop (continuous batching): requests join and leave, each forward pass serves all active ones.

In each step every request drafts tokens, one forward pass reads all drafts, and each request keeps the tokens that the
model itself would have written (`verify`). A finished request makes room for the next one at once (iteration-level
scheduling, Orca, Yu et al. 2022, OSDI). Without a drafter the draft is empty, so that compared systems differ only in
their drafts. An answer does not depend on other requests: each has its own random numbers, stop strings, drafter and
limit.

The model runs behind a backend: sessions (`session_backend`), rows of a transformers model that share prefixes
(`evaluation.row_backend`), or the packed engine (`runtime.slots`).
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

from lib import timing
from lib.decoding.requests import Request


class Backend(Protocol):
    """A model that reads several sequences, each identified by its request.

    `reading`: the requests whose prompts it has begun to read, where it reads them in pieces between steps.
    """

    reading: Collection[Request]

    def admit(self, waiting: deque[Request]) -> Iterator[tuple[Request, object]]:
        """Take requests out of `waiting` while there is room, in any order, and read their prompts.

        Yields (request, logits [1, vocabulary] after its prompt), or (request, None) where the prompt's last token is
        left for the first step. Requests that were cancelled while they were read leave here.
        """

    def step(self, inputs: dict[Request, object]) -> object:
        """Append tokens, int64 [k], to each sequence; the logits after all of them in order, [sum of k, vocabulary]."""

    def keep(self, request: Request, length: int) -> None:
        """Rewind a sequence to its first `length` tokens."""

    def leave(self, request: Request) -> None:
        """Free the place of a request that has ended."""


class Loop:
    """Runs requests on a backend; more can be added while it runs."""

    def __init__(self, backend: Backend, requests: Iterable[Request] = ()):
        self.backend, self.waiting = backend, deque(requests)
        self.active: dict[Request, None] = {}  # in order of admission

    def add(self, request: Request) -> None:
        """A request that begins as soon as there is room."""
        self.waiting.append(request)

    def cancel(self, request: Request, reason: str = "cancelled") -> None:
        """End a request now, with the tokens it has, for this reason."""
        if request.answer.reason:
            return
        request.end(reason)
        if request in self.active:
            self._leave(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def run(self) -> None:
        """Answer all requests."""
        while self.step():
            pass

    def step(self) -> bool:
        """Admit waiting requests, then extend every active answer by one step; returns whether there was any work."""
        self._admit()
        if not self.active:
            return bool(self.backend.reading)
        self._advance()
        return True

    def _admit(self) -> None:
        arrivals = self.backend.admit(self.waiting)
        while True:
            with timing.stopwatch() as reading:
                request, logits = next(arrivals, (None, None))
                if request is not None:
                    request.begin()
            if request is None:
                return
            self.active[request] = None
            request.answer.prefill_seconds = reading.seconds
            if request.answer.reason:  # cancelled while its prompt was read
                self._leave(request)
            elif logits is not None:
                tokens = choose({request: None}, logits)[request]
                if request.answer.reason:  # no token can be chosen
                    self._leave(request)
                else:
                    self._take(request, tokens, 0, 0.0)

    def _advance(self) -> None:
        with timing.stopwatch() as watch:
            drafts = {request: request.propose() for request in self.active}
            logits = self.backend.step({request: request.inputs(draft) for request, draft in drafts.items()})
            found = choose(drafts, logits)
            counts = {request: 0 if draft is None else len(draft.token_ids) for request, draft in drafts.items()}
            for request, tokens in found.items():
                if len(tokens) <= counts[request]:
                    self.backend.keep(request, request.known + len(tokens) - 1)
        for request, tokens in found.items():
            if request.answer.reason == "error" and request in self.active:
                self._leave(request)
            elif request in self.active:  # not cancelled in a callback
                self._take(request, tokens, counts[request], watch.seconds)

    def _take(self, request: Request, tokens: list[int], drafted: int, seconds: float) -> None:
        if request.take(tokens, drafted, seconds) and request in self.active:
            self._leave(request)
            request.end()

    def _leave(self, request: Request) -> None:
        del self.active[request]
        self.backend.leave(request)


def choose(drafts: dict, logits) -> dict[Request, list[int]]:
    """The tokens of this step for each request: the accepted ones of its draft, and one more.

    drafts: request -> `verify.Draft` or None; logits: float [sum of 1 + drafted, vocabulary], numpy or torch. Where
    logits are not finite that request fails: see `Request`.
    """
    found, begin, best = {}, 0, None
    for request, draft in drafts.items():
        end = begin + 1 + (0 if draft is None else len(draft.token_ids))
        try:
            if request.choosing is None:
                best = _all_likeliest(logits) if best is None else best
                own = best[begin:end] if best else likeliest(logits[begin:end])
                found[request] = agreed(own, [] if draft is None else draft.token_ids.tolist())
            else:
                found[request] = _drawn(request, draft, logits[begin:end])
        except ValueError as error:
            found[request] = request.fail(error)
        if request.scores is not None:
            request.scores.chosen(logits[begin:end], found[request])
        begin = end
    return found


def _drawn(request: Request, draft, rows) -> list[int]:
    import torch  # only where a request draws or has settings: see `requests`

    from lib.decoding.verify import NOTHING, verify  # needs torch

    return verify(torch.as_tensor(rows).float().cpu(), draft or NOTHING, request.history(draft), request.choosing)


def _all_likeliest(logits) -> list[int]:
    """The likeliest tokens of all rows at once; none where a row has none, which ends only the request that has it."""
    try:
        return likeliest(logits)
    except ValueError:
        return []


def likeliest(logits) -> list[int]:
    """The token with the greatest logit in each row of [rows, vocabulary], numpy or torch."""
    best = logits.argmax(-1)
    chosen = logits[range(len(best)), best]
    if (chosen != chosen).any():  # argmax treats NaN as the largest
        from lib.decoding.sampling import not_finite  # needs torch, which greedy texts do without

        raise not_finite()
    return best.tolist()


def agreed(best: list[int], guesses: list[int]) -> list[int]:
    """Drafted `guesses` [k] up to the first that is not the likeliest, then one token more, of `best` [k + 1]."""
    same = next((place for place, guess in enumerate(guesses) if guess != best[place]), len(guesses))
    return best[: same + 1]
