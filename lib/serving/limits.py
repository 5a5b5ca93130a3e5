"""What one server allows; each limit bounds what a client can cost."""

from dataclasses import dataclass

PIECE = 96  # tokens of prompts between two steps: four passes over the weights, as the packed kernels take 24 rows each


@dataclass(frozen=True)
class Limits:
    """slots: answers at once, of one model. queue: requests that may wait beside them; more get status 429.

    input_tokens, total_tokens: of a prompt, and with its answer; None for the model's context. cache_bytes: keys and
    values of a model, those kept for shared prefixes included. body_bytes: of a request. seconds: that an answer may
    take, its waiting included. sequences: answers to one request (n, best_of, or several prompts). stops: stop strings,
    each of `stop_characters` at most. top: likeliest tokens that are told a place. piece: tokens of prompts that are
    read between two steps, so that running answers wait at most for one pass over so many rows. rate: requests a
    minute from one address, 0 for no limit. body_seconds: in which a request's body must have come.
    """

    slots: int = 16
    queue: int = 128
    input_tokens: int | None = None
    total_tokens: int | None = None
    cache_bytes: int = 2 << 30
    body_bytes: int = 2 << 20
    seconds: float = 600.0
    body_seconds: float = 30.0
    sequences: int = 16
    stops: int = 4
    stop_characters: int = 256
    top: int = 20
    piece: int = PIECE
    rate: int = 0

    def __post_init__(self):
        wrong = [name for name, value in vars(self).items() if value is not None and not value > -(name == "rate")]
        if wrong:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in wrong)
            raise ValueError(f"{given}; limits are numbers above 0, and rate from 0; leave them out for the defaults.")
