"""Backend of the generation loop for sessions: each active request has a session of its own."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lib.decoding.requests import Request
from lib.decoding.sessions import Session, read


class Sessions:
    """A `generation_loop.Backend` for as many requests at once as there are `sessions`, each rewound to length 0."""

    def __init__(self, sessions: list[Session]):
        self.free, self.of = list(sessions), {}

    def admit(self, waiting: deque[Request]) -> Iterator[tuple[Request, None]]:
        """Read all but the last token of a prompt, so that the first step can read it together with a draft."""
        while waiting and self.free:
            request = waiting.popleft()
            session = self.of[request] = self.free.pop(0)
            session.rewind(0)
            read(session, torch.tensor(request.prompt[:-1], dtype=torch.long))
            yield request, None

    def step(self, inputs: dict[Request, np.ndarray]) -> Tensor:
        """Let each session read its own tokens."""
        return torch.cat([self.of[request].extend(torch.from_numpy(tokens)) for request, tokens in inputs.items()])

    def keep(self, request: Request, length: int) -> None:
        """Rewind the request's session."""
        self.of[request].rewind(length)

    def leave(self, request: Request) -> None:
        """Free the request's session for another one."""
        self.free.append(self.of.pop(request))
