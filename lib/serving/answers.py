"""Answers under way, on the side of the event loop: tokens as they come, the end, and the times between."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from lib import timing
from lib.decoding.draft_controller import DraftController
from lib.decoding.lookup import Lookup
from lib.decoding.requests import Generation, Request
from lib.decoding.sampling import Sampling
from lib.decoding.scores import Place, Scores
from lib.decoding.stops import Stops
from lib.decoding.text_pieces import Pieces
from lib.serving.artifacts import Artifact
from lib.serving.engine import Engine
from lib.serving.problems import Problem


@dataclass(frozen=True)
class Ask:
    """What one answer is asked for.

    prompt: token ids. stop: stop strings. sampling: arguments of `Sampling` without a seed; None for greedy. top: the
    likeliest tokens that are told a place; scored: whether log-probabilities of the answer are wanted, prompt_scores:
    of its prompt too. endless: whether it goes on where the model would end.
    """

    prompt: list[int]
    new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: dict | None = None
    seed: int | None = None
    top: int = 0
    scored: bool = False
    prompt_scores: bool = False
    repetition_penalty: float | None = None
    endless: bool = False

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn, so that there is a seed."""
        return self.sampling is not None and bool(self.sampling.get("temperature"))


@dataclass(frozen=True)
class Token:
    """A token of an answer: its id, the text that it adds, its place's log-probabilities, whether it is special."""

    id: int
    text: str
    place: Place | None
    special: bool


class Answer:
    """One answer; `tokens` yields what comes, and `generation` stands when it has ended."""

    def __init__(self, engine: Engine, artifact: Artifact, ask: Ask, *, seconds: float):
        self.engine, self.artifact, self.ask = engine, artifact, ask
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue()
        self.generation: Generation | None = None
        self.problem: Problem | None = None
        self.seed = secrets.randbits(53) if ask.drawn and ask.seed is None else ask.seed
        self.scores = Scores(top=ask.top, prompt=ask.prompt_scores) if ask.scored or ask.prompt_scores else None
        self.submitted = self.ended = timing.clock()
        self.first: float | None = None
        self.deadline = self.loop.time() + seconds
        self.told: list[Token] = []
        self.request = self._request()

    def _request(self) -> Request:
        ask, artifact = self.ask, self.artifact
        penalty = {} if ask.repetition_penalty is None else {"repetition_penalty": ask.repetition_penalty}
        if ask.sampling is None and not penalty:
            sampling = None
        else:
            sampling = Sampling(**(ask.sampling or {}), **penalty, seed=self.seed or 0)
        own, drafter, controller = artifact.own, None, None
        if sampling is None and artifact.costs is not None:  # draws would take other random numbers
            drafter, controller = Lookup(), DraftController(artifact.costs)
        return Request(
            ask.prompt, ask.new_tokens, sampling=sampling, own=own, scores=self.scores,
            ends=frozenset() if ask.endless else artifact.ends, drafter=drafter, controller=controller,
            stops=Stops([*ask.stop, *own.stop_strings], artifact.words),
            stream=lambda tokens: self._tell(tokens),
            finished=lambda answer: self._tell(answer),
            failed=lambda error: self._tell(Problem("generation", f"Request failed during generation: {error}")),
        )  # fmt: skip

    def _tell(self, event) -> None:
        self.engine.tell(self.loop, self.queue.put_nowait, event)

    async def tokens(self) -> AsyncIterator[Token]:
        """Token after token; ends with the answer, when the last of `told` may have got more text.

        Raises a `Problem` where it fails or takes too long.
        """
        pieces, count = Pieces(self.artifact.tokenizer, special=True), 0
        while True:
            event = await self._next()
            if isinstance(event, Generation) and event.reason == "stopping":
                event = Problem("unavailable", "The server is stopping.")
            if isinstance(event, Problem):
                self.problem = event
                raise event
            if isinstance(event, Generation):
                self.generation, self.ended = event, timing.clock()
                if rest := pieces.rest():  # half a character at the end
                    self.told[-1] = replace(self.told[-1], text=self.told[-1].text + rest)
                return
            self.first = self.first or timing.clock()
            for token in event:
                place = self.scores.answer[count] if self.scores is not None else None
                count += 1
                found = Token(token, pieces.add(token), place, token in self.artifact.special)
                self.told.append(found)
                yield found

    async def _next(self):
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self.queue.get()
        except TimeoutError:
            self.cancel()
            return Problem("timeout", "The answer took longer than this server allows.")

    async def whole(self) -> "Answer":
        """Wait for the end."""
        async for _ in self.tokens():
            pass
        return self

    def cancel(self) -> None:
        """End it, where it has not ended: nobody waits for it any more."""
        if self.generation is None:
            self.engine.cancel(self.artifact, self.request)

    @property
    def logprob(self) -> float:
        """Mean log-probability of the tokens."""
        values = [place.logprob for place in self.scores.answer[: len(self.generation.token_ids)]]
        return sum(values) / max(len(values), 1)

    @property
    def entered(self) -> float:
        """When its prompt began to be read; the end where it never was."""
        return self.request.answer.entered or self.ended
