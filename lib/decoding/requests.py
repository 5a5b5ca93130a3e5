"""A generation request: prompt, sampling, stop conditions, drafter, and the tokens generated so far.

Needs torch only where a request draws, drafts, or has settings of a checkpoint that change logits.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lib import timing
from lib.decoding.settings import PLAIN, Settings
from lib.decoding.stops import Stops, Watch

NOWHERE = Stops((), None)


class Step(NamedTuple):
    """One pass of the model: tokens drafted, tokens accepted, tokens added to the answer, and seconds."""

    drafted: int
    accepted: int
    produced: int
    seconds: float


@dataclass
class Generation:
    """An answer: its tokens (with the one that ended it), why it ended ("eos", "stop" or "length"), and its steps.

    `prefill_seconds`: until the model, and one that drafts, had read the prompt. Seconds of a step are those of the
    whole pass, whichever other requests it served. `entered`: the clock when its prompt began to be read.
    `text` is without special tokens and cut before the first stop string; None where no tokenizer was given.
    """

    token_ids: list[int] = field(default_factory=list)
    reason: str = ""
    steps: list[Step] = field(default_factory=list)
    prefill_seconds: float = 0.0
    entered: float | None = None
    text: str | None = None

    @property
    def seconds(self) -> float:
        """Seconds of all steps, without reading the prompt."""
        return sum(step.seconds for step in self.steps)

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / len(self.token_ids)

    @property
    def tokens_per_step(self) -> float:
        return len(self.token_ids) / len(self.steps)


class Request:
    """Continue `prompt` (token ids, one or more) by at most `new_tokens` tokens; the result is `answer`.

    sampling: a `sampling.Sampling`, None for greedy; own: the checkpoint's settings (`settings.of`). stops, ends: stop
    strings and token ids that end the answer. drafter, controller: what drafts, and what decides how far. scores: a
    `scores.Scores` that takes log-probabilities. stream: called with the new token ids of each step; finished: with
    the answer, once it has ended; failed: with the error where no token can be chosen, which ends this answer alone
    (without it the error is raised, and ends the loop).
    """

    def __init__(
        self,
        prompt: Collection[int],
        new_tokens: int,
        *,
        sampling=None,
        own: Settings = PLAIN,
        stops: Stops = NOWHERE,
        ends: Collection[int] = (),
        drafter=None,
        controller=None,
        scores=None,
        stream: Callable[[list[int]], None] | None = None,
        finished: Callable[[Generation], None] | None = None,
        failed: Callable[[ValueError], None] | None = None,
    ):
        self.prompt, self.new_tokens, self.sampling, self.own = list(prompt), new_tokens, sampling, own
        self.watch, self.answer = Watch(stops, ends, new_tokens), Generation()
        self.drafter, self.controller, self.scores = drafter, controller, scores
        self.stream, self.finished, self.failed = stream, finished, failed
        self.drafting = 0.0  # seconds of the last draft

    def enter(self) -> None:
        """Called when the request has got its place, before its prompt is read."""
        self.answer.entered = timing.clock()

    def begin(self) -> None:
        """Called when the model has read the prompt: allocate the answer, and let the drafter read the prompt too."""
        self.text = np.empty(len(self.prompt) + self.new_tokens, np.int64)
        self.known = len(self.prompt)
        self.text[: self.known] = self.prompt
        greedy = self.sampling is None or (self.sampling.greedy and not self.sampling.penalised)
        self.choosing = None if greedy else self.sampling
        if self.own:  # created only now, since a processor may hold the prompt
            from lib.decoding.sampling import Sampling  # needs torch, which greedy texts do without

            self.choosing = (self.sampling or Sampling()).answering(self.own, self.prompt, self.new_tokens)
        if self.drafter is not None:
            self.drafter.begin(self._tensor(self.known - 1))
        if self.controller is not None:
            self.controller.start()

    def propose(self):
        """The next `verify.Draft`, at most one token less than fits; None where nothing is drafted."""
        room = len(self.text) - self.known - 1  # leave room for the token after the draft
        if self.drafter is None or room < 1:
            return None
        with timing.stopwatch() as watch:
            known = self._tensor(self.known)
            at_most = room if self.controller is None else self.controller.longest(room, self.drafter.unread(known))
            draft = self.drafter.draft(known, at_most) if at_most > 0 else None
        self.drafting = watch.seconds
        if draft is None or not len(draft.token_ids):
            return None
        chosen = draft.probabilities
        return draft._replace(
            token_ids=draft.token_ids[:at_most], probabilities=None if chosen is None else chosen[:at_most]
        )

    def inputs(self, draft) -> np.ndarray:
        """The tokens that the model reads next, int64 [1 + drafted]: the last known token and the draft."""
        if draft is None:
            return self.text[self.known - 1 : self.known]
        end = self.known + len(draft.token_ids)
        self.text[self.known : end] = draft.token_ids
        return self.text[self.known - 1 : end]

    def history(self, draft):
        """The tokens so far with the draft behind them, LongTensor [length + drafted]."""
        return self._tensor(self.known + (0 if draft is None else len(draft.token_ids)))

    def take(self, found: list[int], drafted: int, seconds: float) -> bool:
        """Add the tokens `found` in a step; returns whether the answer has ended with them."""
        kept = next((count for count, token in enumerate(found, 1) if self.watch.see(token)), len(found))
        self.text[self.known : self.known + kept] = found[:kept]
        self.known += kept
        self.answer.steps.append(Step(drafted, len(found) - 1, kept, seconds))
        if self.controller is not None:
            self.controller.record(drafted, len(found) - 1, seconds, self.drafting)
        self.drafting = 0.0
        if self.stream is not None:
            self.stream(found[:kept])
        return bool(self.watch.reason)

    def fail(self, error: ValueError) -> list[int]:
        """End the answer because no token can be chosen: no tokens; raises the error where nobody takes it."""
        if self.failed is None:
            raise error
        self.answer.token_ids, self.answer.reason = self.watch.tokens, "error"
        self.failed(error)
        return []

    def end(self, reason: str = "") -> None:
        """Complete the answer; its end reason is `reason` where neither a token nor a stop string ended it."""
        self.answer.token_ids, self.answer.text = self.watch.tokens, self.watch.text()
        self.answer.reason = self.watch.reason or reason
        if self.finished is not None:
            self.finished(self.answer)

    def _tensor(self, count: int):
        """The first `count` tokens as a LongTensor that shares their memory."""
        import torch  # not needed for greedy requests

        return torch.from_numpy(self.text[:count])
