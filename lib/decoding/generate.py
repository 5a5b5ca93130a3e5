"""Generation for a single prompt: the shared generation loop with one request.

Greedy answers with a drafter are token-identical to plain greedy up to rounding between passes of one and of several
tokens (`identical.first_divergence` tells where and by how much); sampled ones have the same distribution.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from lib.decoding import settings
from lib.decoding.draft_controller import DraftController
from lib.decoding.generation_loop import Loop
from lib.decoding.requests import Generation, Request, Step
from lib.decoding.sampling import Sampling
from lib.decoding.session_backend import Sessions
from lib.decoding.sessions import Session, check_tokens, room
from lib.decoding.stops import Stops
from lib.decoding.verify import Drafter

__all__ = ["Generation", "Step", "generate"]


def generate(
    session: Session,
    prompt: Tensor,
    *,
    new_tokens: int,
    drafter: Drafter | None = None,
    controller: DraftController | None = None,
    sampling: Sampling | None = None,
    eos: int | Collection[int] | None = (),
    stop: str | Collection[str] = (),
    tokenizer=None,
    stream: Callable[[list[int]], None] | None = None,
    plain: bool = False,
) -> Generation:
    """Continue `prompt` (LongTensor [length], one text) by at most `new_tokens` tokens.

    session: the model; it is rewound to length 0 first. drafter: prompt lookup, a smaller model, or None. controller:
    decides how far to draft. eos: ids that end the answer, which a least length of the model's settings forbids
    until it is reached; None (where a tokenizer has no end token) for none. stop: strings that end it (they need
    `tokenizer`). stream: called with the new token ids of each step. plain: leave out what the model's generation
    settings do to logits, which transformers' `generate` applies to greedy answers too (`settings`). Raises
    ValueError for an empty prompt, for fewer than one new token, and where prompt and answer exceed the context.
    """
    eos = {eos} if isinstance(eos, int) else eos or ()
    own = settings.of(session, plain).ending(eos)
    stops = Stops([*([stop] if isinstance(stop, str) else stop), *own.stop_strings], tokenizer)
    _check(session, prompt, new_tokens)
    request = Request(
        prompt.tolist(), new_tokens, sampling=sampling, own=own, stops=stops, drafter=drafter, controller=controller,
        ends=eos, stream=stream,
    )  # fmt: skip
    Loop(Sessions([session]), [request]).run()
    return request.answer


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
