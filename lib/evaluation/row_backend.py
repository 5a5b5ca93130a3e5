"""Backend of the generation loop for transformers models: many requests in each forward pass.

Prompts are read as `prefixes` plans it: a common prefix once, several endings in one pass. Each then becomes a row of
a batch, to which every step adds as many tokens as its request drafts, and one more.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lib.decoding.requests import Request
from lib.evaluation import prefixes
from lib.evaluation.kv_batch import KVBatch
from lib.models import blocks, logits

ROWS = {"cpu": 16, "cuda": 64}  # rows of a step: the weights are read once for all of them
CACHE_BYTES = 2 << 30  # keys and values of all rows at their longest; fewer rows run where these would not fit


@dataclass
class _Arrival:
    """A prompt that was read: keys and values [heads, length, size] a layer, and logits [1, vocabulary] after it."""

    request: Request
    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor


class RowBackend:
    """A `generation_loop.Backend`: `most` rows a step, `budget` tokens a pass over prompts (see `prefixes.plan`)."""

    reading = ()  # prompts are read whole

    def __init__(self, model: nn.Module, *, budget: int, most: int):
        self.model, self.budget, self.most, self.allowed = model, budget, most, most
        self.projection, self.rows = logits.Projection.of(model), KVBatch(model, most)
        self.order: list[Request] = []  # of each row
        self._arriving: Iterator[_Arrival] = iter(())

    def admit(self, waiting: deque[Request]) -> Iterator[tuple[Request, Tensor]]:
        """Plan all waiting requests together, and read them as rows become free."""
        while len(self.order) < self.allowed:
            new = next(self._arriving, None)
            if new is None and not waiting:
                return
            if new is None:
                self._plan(list(waiting))
                waiting.clear()
                continue
            new.request.enter()
            self.rows.add(new.keys, new.values)
            self.order.append(new.request)
            yield new.request, new.logits

    @torch.no_grad()
    def step(self, inputs: dict[Request, np.ndarray]) -> Tensor:
        """One pass over all rows."""
        counts = [len(inputs[request]) for request in self.order]
        hidden = self.rows.step([inputs[request].tolist() for request in self.order]).split(counts)
        place = {request: row for row, request in enumerate(self.order)}
        return self.projection(torch.cat([hidden[place[request]] for request in inputs]))

    def keep(self, request: Request, length: int) -> None:
        """Rewind a row to `length` columns; later ones are overwritten."""
        self.rows.lengths[self.order.index(request)] = length

    def leave(self, request: Request) -> None:
        """Remove a row; the last one takes its place."""
        row = self.order.index(request)
        self.rows.remove(row)
        self.order[row] = self.order[-1]
        self.order.pop()

    def _plan(self, requests: list[Request]) -> None:
        longest = max(len(each.prompt) + each.new_tokens for each in requests)
        self.allowed = max(1, min(self.most, CACHE_BYTES // (longest * bytes_per_token(self.model))))
        self._arriving = self._read(requests)

    @torch.no_grad()
    def _read(self, requests: list[Request]) -> Iterator[_Arrival]:
        """Read the prompts, pass by pass, as far as they are asked for."""
        root = prefixes.tree(tuple(request.prompt) for request in requests)
        at: dict[prefixes.Node, list[Request]] = {}
        for request in requests:
            at.setdefault(prefixes.find(root, tuple(request.prompt)), []).append(request)
        runner = prefixes.Runner(self.model)
        for each in prefixes.plan(root, set(at), self.budget):
            for done, hidden in runner(each):
                for node, columns in _columns(done):
                    if node.owner is not done or node not in at:
                        continue
                    found = self.projection(hidden[columns[-1] - done.past][None])
                    keys = [layer.keys[0][:, columns] for layer in runner.cache.layers]
                    values = [layer.values[0][:, columns] for layer in runner.cache.layers]
                    yield from (_Arrival(request, keys, values, found) for request in at[node])


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
