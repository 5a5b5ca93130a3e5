"""Text from a packed model: one prompt or many of unequal length, greedy or sampled, with stop strings and a stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lib import tokenization
from lib.decoding import ends, settings
from lib.decoding.generation_loop import Loop
from lib.decoding.requests import Request
from lib.decoding.stops import Stops
from lib.runtime import cache_codes
from lib.runtime.engine import weights_of
from lib.runtime.slots import Slots
from lib.runtime.weights import Weights


@dataclass
class Generated:
    """An answer: its tokens (with the one that ended it), why it ended ("eos", "stop" or "length"), and its text.

    text: without special tokens and cut before the stop string; None where the model has no tokenizer.
    """

    token_ids: list[int] = field(default_factory=list)
    reason: str = ""
    text: str | None = None


def generate(
    model,
    prompts: str | Sequence,
    *,
    new_tokens: int = 64,
    sampling=None,
    stop: str | Sequence[str] = (),
    eos: int | Sequence[int] | None = None,
    stream: Callable[[int, int], None] | None = None,
    plain: bool = False,
    cache_bits: int = 16,
) -> list[Generated]:
    """Continue each prompt (a text, or token ids [length]; one text alone counts as a list of one).

    model: one that `pack_` has packed, or the `Weights` of `runtime.load`. A model that the engine does not compute
    runs through transformers, one prompt after the other, and a line says why.
    sampling: a `decoding.sampling.Sampling`, None for greedy. With one prompt it draws the tokens that transformers
    draws from the same logits and seed; with several it draws for one after the other, where transformers draws for
    all at once. stop: strings that end an answer. eos: ids that end it, None for the model's own; a
    least length of the settings forbids them until it is reached. stream: called with
    the prompt's index and each new token id. plain: leave out what the checkpoint's generation settings do to logits
    (`decoding.settings`), which transformers applies to greedy answers too. cache_bits: of the engine's keys and
    values, 16, 8 or 4 (`cache_codes`).
    Raises ValueError, before the work, for prompts without tokens and where prompt and answer exceed the context.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    backend, tokenizer, limit, named = _backend(model, len(prompts), cache_bits)
    ids = [_ids(prompt, tokenizer) for prompt in prompts]
    _check(ids, new_tokens, limit)
    own = settings.of(model, plain)
    if eos is not None:
        named = ends.ids(eos)
        own = own.ending(named)
    how = {"sampling": sampling, "own": own, "ends": named}
    how["stops"] = Stops([*([stop] if isinstance(stop, str) else stop), *own.stop_strings], tokenizer)
    asked = [Request(each, new_tokens, stream=_told(stream, place), **how) for place, each in enumerate(ids)]
    Loop(backend, asked).run()
    answers = [request.answer for request in asked]
    return [Generated(answer.token_ids, answer.reason, answer.text) for answer in answers]


def _told(stream: Callable[[int, int], None] | None, place: int) -> Callable[[list[int]], None] | None:
    """A callback for a request that passes the tokens of a step to `stream`, one by one, with the prompt's index."""
    return None if stream is None else lambda tokens: [stream(place, token) for token in tokens]


def _backend(model, count: int, cache_bits: int):
    """(the loop's backend, tokenizer, context's limit, ids that end a text) of a model or of weights."""
    if count < 1:
        raise ValueError("no prompts were given; one or more are allowed; give a text or a list of them.")
    try:
        weights = model if isinstance(model, Weights) else weights_of(model)
    except ValueError as error:
        from lib.decoding import session_backend, sessions  # they import torch, which the engine does without

        cache_codes.check_bits(cache_bits)
        if cache_bits < 16:
            raise ValueError(
                f"cache_bits={cache_bits}, and {error} Leave it out: transformers keeps 16 bits."
            ) from error
        print(f"runtime: {error}")
        backend = session_backend.Sessions([sessions.ModelSession(model) for _ in range(count)])
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return backend, getattr(model, "tokenizer", None), limit, ends.of_model(model)
    return Slots(weights, count, cache_bits=cache_bits), weights.tokenizer, weights.limit, weights.stops


def _ids(prompt, tokenizer) -> list[int]:
    if not isinstance(prompt, str):
        return prompt.reshape(-1).tolist() if hasattr(prompt, "tolist") else list(prompt)
    if tokenizer is None:
        raise ValueError("a text was given, and the model has no tokenizer; give token ids, or set model.tokenizer.")
    return tokenization.ids(tokenizer, [prompt])[0]


def _check(prompts: list[list[int]], new_tokens: int, limit: int | None) -> None:
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 1:
        raise ValueError(f"new_tokens={new_tokens!r}; choose a whole number from 1.")
    for index, ids in enumerate(prompts):
        if not ids:
            raise ValueError(f"prompt {index} has no tokens; one or more are allowed; begin it with the BOS token.")
        if limit is not None and len(ids) + new_tokens > limit:
            raise ValueError(
                f"prompt {index} of {len(ids)} tokens and {new_tokens} new ones exceed the context of {limit}; "
                f"ask for at most {max(limit - len(ids), 0)} new tokens, or shorten the prompt."
            )
