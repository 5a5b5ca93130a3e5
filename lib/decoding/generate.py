"""One loop for all of decoding: draft, read the draft in one pass, keep what the model itself would have written.

Without a drafter every draft is empty and the loop is plain decoding, so that two arms of a comparison differ in
nothing but their drafts. Greedy answers are token-identical to plain greedy up to rounding between passes of one and
of several tokens (`identical.first_divergence` tells where and by how much); sampled ones have the same distribution.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lib import timing
from lib.decoding import settings
from lib.decoding.guard import Guard
from lib.decoding.sampling import Sampling
from lib.decoding.sessions import Session, check_tokens, read, room
from lib.decoding.stops import Stops, Watch
from lib.decoding.verify import NOTHING, Draft, Drafter, verify


class Step(NamedTuple):
    """One pass of the model: tokens drafted, how many of them it accepted, tokens that the answer got, and seconds."""

    drafted: int
    accepted: int
    produced: int
    seconds: float


@dataclass
class Generation:
    """An answer: its tokens (with the one that ended it), why it ended ("eos", "stop" or "length"), and its steps.

    `prefill_seconds`: until the model, and one that drafts, had read the prompt.
    `text` is without special tokens and cut before the first stop string; None where no tokenizer was given.
    """

    token_ids: list[int] = field(default_factory=list)
    reason: str = "length"
    steps: list[Step] = field(default_factory=list)
    prefill_seconds: float = 0.0
    text: str | None = None

    @property
    def seconds(self) -> float:
        """Seconds of all steps, the prompt's reading left out."""
        return sum(step.seconds for step in self.steps)

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / len(self.token_ids)

    @property
    def tokens_per_step(self) -> float:
        return len(self.token_ids) / len(self.steps)


def generate(
    session: Session,
    prompt: Tensor,
    *,
    new_tokens: int,
    drafter: Drafter | None = None,
    guard: Guard | None = None,
    sampling: Sampling | None = None,
    eos: int | Collection[int] = (),
    stop: str | Collection[str] = (),
    tokenizer=None,
    stream: Callable[[list[int]], None] | None = None,
    plain: bool = False,
) -> Generation:
    """Continue `prompt` (LongTensor [length], one text) by at most `new_tokens` tokens.

    session: the model; it is rewound to nothing first. drafter: prompt lookup, a smaller model, or None. guard: decides
    how far to draft. eos: ids that end the answer. stop: strings that end it (they need `tokenizer`). stream: called
    with the new token ids of each step. plain: leave out what the model's generation settings do to logits, which
    transformers' `generate` applies to greedy answers too (`settings`). Raises ValueError for an empty prompt, for
    fewer than one new token, and where prompt and answer exceed the context.
    """
    own = settings.of(session, plain)
    strings = [*([stop] if isinstance(stop, str) else stop), *own.stop_strings]
    watch = Watch(Stops(strings, tokenizer), {eos} if isinstance(eos, int) else eos, new_tokens)
    _check(session, prompt, new_tokens)
    answer, known = Generation(reason=""), len(prompt)
    sampling = (sampling or Sampling()).answering(own, prompt.tolist(), new_tokens)
    text = torch.cat([prompt.cpu().long(), torch.zeros(new_tokens, dtype=torch.long)])
    session.rewind(0)
    with timing.stopwatch() as reading:
        read(session, text[: known - 1])
        if drafter is not None:
            drafter.begin(text[: known - 1])
    answer.prefill_seconds = reading.seconds
    if guard is not None:
        guard.start()
    while not answer.reason:
        found, step = _step(session, text, known, drafter, guard, sampling)
        kept = next((count for count, token in enumerate(found, 1) if watch.see(token)), len(found))
        text[known : known + kept] = torch.tensor(found[:kept])
        answer.reason = watch.reason
        answer.steps.append(step._replace(produced=kept))
        known += kept
        if stream is not None:
            stream(found[:kept])
    answer.token_ids, answer.text = watch.tokens, watch.text()
    return answer


def _step(session, text: Tensor, known: int, drafter, guard, sampling: Sampling) -> tuple[list[int], Step]:
    """Draft and verify behind the `known` tokens of `text`, timed; the tokens found, and the step."""
    with timing.stopwatch() as watch:
        with timing.stopwatch() as drafting:
            draft = _propose(drafter, guard, text[:known], len(text) - known - 1)
        found = _pass(session, text, known, draft, sampling)
    step = Step(len(draft.token_ids), len(found) - 1, len(found), watch.seconds)
    if guard is not None:
        guard.record(step.drafted, step.accepted, step.seconds, drafting.seconds)
    return found, step


def _propose(drafter: Drafter | None, guard: Guard | None, known: Tensor, room: int) -> Draft:
    """The draft behind `known` [length] of at most `room` tokens: the token after the draft needs a place too."""
    if drafter is None or room < 1:
        return NOTHING
    at_most = room if guard is None else guard.longest(room, drafter.waiting(known))
    if at_most < 1:
        return NOTHING
    draft = drafter.draft(known, at_most)
    chosen = draft.probabilities
    return Draft(draft.token_ids[:at_most], None if chosen is None else chosen[:at_most])


def _pass(session: Session, text: Tensor, known: int, draft: Draft, sampling: Sampling) -> list[int]:
    """Read the last known token and the draft at once; the tokens of this step, after which the rest is forgotten."""
    end = known + len(draft.token_ids)
    text[known:end] = draft.token_ids
    logits = session.extend(text[known - 1 : end])
    found = verify(logits, draft, text[:end], sampling)
    session.rewind(known + len(found) - 1)
    return found


def _check(session: Session, prompt: Tensor, new_tokens: int) -> None:
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 1:
        raise ValueError(f"new_tokens={new_tokens!r}; choose a whole number from 1.")
    check_tokens(prompt, torch.iinfo(torch.long).max)
    limit = room(session)
    if limit is not None and len(prompt) + new_tokens > limit:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and {new_tokens} new ones do not fit the model's context of {limit}; "
            f"ask for at most {max(limit - len(prompt), 0)} new tokens, or shorten the prompt."
        )
