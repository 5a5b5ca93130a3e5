"""Greedy generation for many prompts at once, with rows that come and go (continuous batching).

Prompts are read as `prefixes` plans it: a common beginning once, several endings in one pass. Each then becomes a row
of a batch in which every step adds one token to every row. A row that has finished makes room at once (iteration-level
scheduling, Orca, Yu et al. 2022, OSDI). The text of a row is that of greedy generation on its own, up to ties that the
rounding of a batched product decides otherwise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import tokenization
from lib.decoding import ends
from lib.decoding.sampling import Sampling, not_finite
from lib.decoding.sessions import ModelSession
from lib.decoding.settings import PLAIN, Settings
from lib.decoding.stops import Stops, Watch
from lib.evaluation import prefixes
from lib.evaluation.kv_batch import Rows
from lib.models import blocks, logits
from lib.tasks.task import Generation

ROWS = {"cpu": 16, "cuda": 64}  # rows of a step: the weights are read once for all of them
CACHE_BYTES = 2 << 30  # keys and values of all rows at their longest; fewer rows run where these would not fit


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


def watch(tokenizer, request: Generation, named, own: Settings = PLAIN) -> Watch:
    """What ends the answer to `request`: the end tokens `named`, its stop strings, those of the checkpoint's `own`
    settings, and the text of the tokenizer's end token, as in `HFLM`."""
    end = getattr(tokenizer, "eos_token_id", None)
    strings = [*request.until, *own.stop_strings]
    strings += [] if end is None else [tokenizer.decode([end])]
    return Watch(Stops([each for each in strings if each], tokenizer), named, request.max_new_tokens)


class Chooser:
    """Which token follows logits: the likeliest, or one drawn as `Sampling` says, by a generator of the request's own,
    after what the checkpoint's `own` settings do to logits.

    Request `index` has the seed `seed` + `index`, so what it draws depends on no other request.
    """

    def __init__(
        self, prompts: list[Prompt], requests: list[Generation], sampling: dict | None = None, seed: int = 0,
        own: Settings = PLAIN,
    ):  # fmt: skip
        self.prompts, self.requests, self.sampling, self.seed, self.own = prompts, requests, sampling, seed, own
        self.of: dict[int, Sampling] = {}

    def __call__(self, logits: Tensor, active: list[tuple[int, list[int]]]) -> list[int]:
        """A token for each row of `logits` [rows, vocabulary]; `active` holds each row's request and tokens so far."""
        if self.sampling or self.own:
            return [self._next(row, index, tokens) for row, (index, tokens) in zip(logits.float().cpu(), active)]
        if logits.isnan().any():
            raise not_finite()
        return logits.argmax(-1).tolist()

    def _next(self, logits: Tensor, index: int, tokens: list[int]) -> int:
        prompt = list(self.prompts[index].tokens)
        if index not in self.of:
            drawn = Sampling(**(self.sampling or {}), seed=self.seed + index)
            self.of[index] = drawn.answering(self.own, prompt, self.requests[index].max_new_tokens)
        return self.of[index].next(logits, torch.tensor(prompt + tokens))


@dataclass
class _Arrival:
    """A prompt that was read: keys and values [heads, length, size] a layer, and the first new token."""

    index: int
    keys: list[Tensor]
    values: list[Tensor]
    first: int


@torch.no_grad()
def generate(
    model: nn.Module, tokenizer, requests: list[Generation], prompts: list[Prompt], wanted: set[int],
    finished: Callable, *, budget: int, most: int, chooser: Chooser | None = None,
) -> list[str | None]:  # fmt: skip
    """Texts for the `requests` in `wanted` (None for the others), `most` rows a step, `budget` tokens a prompt pass.

    chooser: how tokens are chosen, greedily unless it says otherwise. finished(index, text) is called as soon as a
    text is known.
    """
    texts: list[str | None] = [None] * len(requests)
    named, projection = ends.of_task(ends.of_model(model), tokenizer), logits.Projection.of(model)
    chooser = chooser or Chooser(prompts, requests)
    longest = max((len(prompts[index].tokens) + requests[index].max_new_tokens for index in wanted), default=0)
    most = max(1, min(most, CACHE_BYTES // max(1, longest * bytes_per_token(model))))
    arriving, rows, active = _arrivals(model, prompts, wanted, budget, projection, chooser), Rows(model, most), []

    def see(index: int, answer: Watch, token: int) -> bool:
        if answer.see(token):
            texts[index] = answer.text()
            finished(index, texts[index])
        return bool(answer.reason)

    while True:
        while len(active) < most and (new := next(arriving, None)) is not None:
            begun = watch(tokenizer, requests[new.index], named, chooser.own)
            if not see(new.index, begun, new.first):
                rows.add(new.keys, new.values)
                active.append((new.index, begun))
        if not active:
            return texts
        found = projection(rows.step([answer.tokens[-1] for _, answer in active]))
        chosen = chooser(found, [(index, answer.tokens) for index, answer in active])
        for place in reversed(range(len(active))):  # from the last: the last row fills the gap of one that leaves
            if see(*active[place], chosen[place]):
                rows.remove(place)
                active[place] = active[-1]
                active.pop()


def _arrivals(
    model: nn.Module, prompts: list[Prompt], wanted: set[int], budget: int, projection: logits.Projection,
    chooser: Chooser,
) -> Iterator[_Arrival]:  # fmt: skip
    """Read the prompts, pass by pass, as far as they are asked for."""
    root = prefixes.tree(prompts[index].tokens for index in wanted)
    at: dict[prefixes.Node, list[int]] = {}
    for index in sorted(wanted):
        at.setdefault(prefixes.find(root, prompts[index].tokens), []).append(index)
    runner = prefixes.Runner(model)
    for each in prefixes.plan(root, set(at), budget):
        for done, hidden in runner(each):
            for node, columns in _columns(done):
                if node.owner is not done or node not in at:
                    continue
                found = projection(hidden[columns[-1] - done.past][None])
                keys = [layer.keys[0][:, columns] for layer in runner.cache.layers]
                values = [layer.values[0][:, columns] for layer in runner.cache.layers]
                yield from (_Arrival(index, keys, values, *chooser(found, [(index, [])])) for index in at[node])


def _columns(done: prefixes.Pass) -> Iterator[tuple[prefixes.Node, Tensor]]:
    """Each node of a pass, with the columns of the cache that hold its sequence from the first token to its end."""
    before, begin = {}, done.past
    for node in done.nodes:
        above = before.get(node.parent, torch.arange(done.past))
        before[node] = torch.cat([above, torch.arange(begin, begin + len(node.tokens))])
        begin += len(node.tokens)
        yield node, before[node]


def bytes_per_token(model: nn.Module) -> int:
    """Bytes that the keys and values of one token take."""
    config = blocks.config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * blocks.embeddings(model).weight.dtype.itemsize


def generate_plainly(
    model: nn.Module, tokenizer, requests: list[Generation], prompts: list[Prompt], wanted: set[int],
    finished: Callable, chooser: Chooser,
) -> list[str | None]:  # fmt: skip
    """The same texts, one prompt at a time with the model's own cache: for models that can't be batched so."""
    texts: list[str | None] = [None] * len(requests)
    named = ends.of_task(ends.of_model(model), tokenizer)
    for index in sorted(wanted):
        session, answer = ModelSession(model), watch(tokenizer, requests[index], named, chooser.own)
        found = session.extend(torch.tensor(prompts[index].tokens), last=True)
        while not answer.see(*chooser(found, [(index, answer.tokens)])):
            found = session.extend(torch.tensor(answer.tokens[-1:]))
        texts[index] = answer.text()
        finished(index, texts[index])
    return texts
