"""Turns a task's generations into requests of `decoding.generation_loop`, by lm-evaluation-harness's rules.

Each request gets the text that it would get alone: greedily, up to near-ties that batched products round differently,
or by its own random numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lib import tokenization
from lib.decoding.requests import Request
from lib.decoding.sampling import Sampling
from lib.decoding.settings import PLAIN, Settings
from lib.decoding.stops import Stops, Watch
from lib.tasks.task import Generation


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt; `truncated` where its left end did not fit."""

    tokens: tuple[int, ...]
    truncated: bool


def encode(tokenizer, requests: list[Generation], longest: int, *, bos: bool | None = None) -> list[Prompt]:
    """Prompts as token ids, without their left end where prompt and new tokens exceed `longest`, as in `HFLM`.

    Raises ValueError for an empty prompt and for `max_new_tokens` that leave no room for a prompt.
    """
    found = tokenization.ids(tokenizer, [request.prompt for request in requests], bos)
    for request, ids in zip(requests, found):
        if not 1 <= request.max_new_tokens < longest:
            raise ValueError(
                f"max_new_tokens={request.max_new_tokens} of a model that reads {longest} tokens; 1 to {longest - 1} "
                "are allowed, so that the prompt has room; change the task."
            )
        if not ids:
            raise ValueError("a prompt without tokens; one at least is needed; change the sample.")
    rooms = [longest - request.max_new_tokens for request in requests]
    return [Prompt(tuple(ids[-room:]), len(ids) > room) for ids, room in zip(found, rooms)]


def stops(tokenizer, request: Generation, own: Settings = PLAIN) -> Stops:
    """The strings that end the answer to `request`: its own, those of the checkpoint's settings, and the text of the
    tokenizer's end token, as in `HFLM`."""
    end = getattr(tokenizer, "eos_token_id", None)
    strings = [*request.until, *own.stop_strings]
    strings += [] if end is None else [tokenizer.decode([end])]
    return Stops([each for each in strings if each], tokenizer)


def watch(tokenizer, request: Generation, named, own: Settings = PLAIN) -> Watch:
    """The stop conditions of `request`: the end tokens `named`, `stops`, and its maximum length."""
    return Watch(stops(tokenizer, request, own), named, request.max_new_tokens)


@dataclass
class Asked:
    """Requests of a task, their prompts, and the `texts` that have come for them.

    sampling, seed, own: see `sampling_mixin`; request i has the seed `seed` + i, so what it draws depends on no other
    one. named: end tokens. finished(index, text) is called as soon as a text is known.
    """

    tokenizer: object
    requests: list[Generation]
    prompts: list[Prompt]
    named: frozenset[int]
    sampling: dict
    seed: int
    own: Settings
    finished: Callable

    def __post_init__(self):
        self.texts: list[str | None] = [None] * len(self.requests)

    def request(self, index: int) -> Request:
        """One request for the loop; its text goes to `texts`."""
        asked = self.requests[index]

        def tell(answer):
            self.texts[index] = answer.text
            self.finished(index, answer.text)

        return Request(
            self.prompts[index].tokens, asked.max_new_tokens, own=self.own, ends=self.named, finished=tell,
            stops=stops(self.tokenizer, asked, self.own),
            sampling=Sampling(**self.sampling, seed=self.seed + index) if self.sampling else None,
        )  # fmt: skip

    def __call__(self, indices) -> list[Request]:
        """The requests at `indices`, in this order."""
        return [self.request(index) for index in indices]
