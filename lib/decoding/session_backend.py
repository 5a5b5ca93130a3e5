"""Backend of the generation loop for sessions: each active request has a session of its own.

Its passes are those that it would take alone, so an answer has the same bits whatever runs beside it.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lib.decoding.requests import Request
from lib.decoding.sessions import Session


class Sessions:
    """A `generation_loop.Backend` for as many requests at once as there are `sessions`, each rewound to length 0.

    piece: tokens of a prompt that are read between two steps, of one request after the other; None reads a prompt
    whole. Pieces begin at multiples of it, so that passes depend on no other request.
    """

    def __init__(self, sessions: list[Session], *, piece: int | None = None):
        self.free, self.of, self.piece = list(sessions), {}, piece
        self.reading: dict[Request, int] = {}  # tokens of the prompt that were read, in the order of their turns

    def admit(self, waiting: deque[Request]) -> Iterator[tuple[Request, None]]:
        """Read all but the last token of a prompt, so that the first step can read it together with a draft."""
        for request in [each for each in self.reading if each.answer.reason]:
            del self.reading[request]
            self.leave(request)
        while (waiting and self.free) or self.reading:
            while waiting and self.free and (self.piece is not None or not self.reading):
                self._enter(waiting.popleft())
            request, done = next(iter(self.reading.items()))
            del self.reading[request]
            end = len(request.prompt) - 1 if self.piece is None else min(done + self.piece, len(request.prompt) - 1)
            self._read(request, done, end)
            if end == len(request.prompt) - 1:
                yield request, None
            else:
                self.reading[request] = end
            if self.piece is not None:
                return

    def step(self, inputs: dict[Request, np.ndarray]) -> Tensor:
        """Let each session read its own tokens."""
        return torch.cat([self.of[request].extend(torch.from_numpy(tokens)) for request, tokens in inputs.items()])

    def keep(self, request: Request, length: int) -> None:
        """Rewind the request's session."""
        self.of[request].rewind(length)

    def leave(self, request: Request) -> None:
        """Free the request's session for another one."""
        self.free.append(self.of.pop(request))

    def _enter(self, request: Request) -> None:
        request.enter()
        session = self.of[request] = self.free.pop(0)
        session.rewind(0)
        self.reading[request] = 0

    def _read(self, request: Request, begin: int, end: int) -> None:
        """Read tokens of the prompt, for their log-probabilities too where the request wants them."""
        if begin == end:
            return
        wanted = request.scores is not None and request.scores.wants_prompt
        found = self.of[request].extend(torch.tensor(request.prompt[begin:end], dtype=torch.long), last=not wanted)
        if wanted:
            request.scores.read(found, request.prompt[begin + 1 : end + 1])
