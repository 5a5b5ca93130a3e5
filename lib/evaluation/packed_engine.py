"""The packed runtime as an evaluation engine: a packed model answers the requests of tasks.

One session reads the requests in the order of their tokens and rewinds to the prefix that the next one shares, so each
shared token is read once. A row's logits have the same bits whatever else is in the batch, so answers depend neither on
which requests are wanted nor on how many are generated together.
"""

import hashlib
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor

from lib import checkpoints, timing, tokenization
from lib.decoding import ends, settings
from lib.decoding.generation_loop import Loop
from lib.decoding.requests import Request
from lib.evaluation import likelihood, prefixes
from lib.evaluation.local import Local, everything, nothing
from lib.models import blocks
from lib.runtime.engine import Batch, Session, weights_of
from lib.runtime.families import LINEARS
from lib.runtime.modules import PackedLinear
from lib.runtime.slots import Slots
from lib.runtime.weights import Weights
from lib.tasks.task import Generation, Likelihood, Outcome

ROWS = 8  # generations at once


class Packed(Local):
    """Answers by a packed model: from `runtime.load`, or a model of a supported family after `runtime.pack_`.

    tokenizer: one of transformers; None takes the model's own, or that of the loaded folder. bos: as for `Local`.
    rows: generations at once. sampling, seed, plain: as for `Local`. Raises ValueError without a tokenizer, and for
    families that the runtime lacks.
    """

    shares = True  # prefixes to which the session rewinds

    def __init__(self, model, tokenizer=None, *, bos=None, rows: int = ROWS, sampling=None, seed: int = 0, plain=False):
        self.weights = model if isinstance(model, Weights) else weights_of(model)
        self.tokenizer = tokenizer if tokenizer is not None else _tokenizer(model)
        self.bos, self.rows, self.truncated = bos, rows, []
        self.drawn(sampling, seed, settings.of(self.weights, plain))

    @property
    def identity(self) -> str:
        """SHA-256 of what determines the answers: every packed matrix, bias and norm, shapes, tokenizer."""
        w, digest = self.weights, hashlib.sha256()
        for matrix in w.matrices():
            digest.update(matrix.data)
            digest.update(repr(matrix[1:]).encode())
        ends = {"norm": w.norm, "head": (None, w.head_bias)}
        ends |= {f"rotation {i}": part.frequencies * np.float32(part.scale) for i, part in enumerate(w.rotations)}
        for layer in (*w.layers, ends):
            for name, part in sorted(layer.items()):
                values = part[1] if isinstance(part, tuple) else part
                digest.update(name.encode() + (b"" if values is None else values.tobytes()))
        shape = w.architecture, w.embedding_scale, sorted(w.stops), self.bos
        digest.update(repr((shape, tuple(LINEARS), tokenization.identity(self.tokenizer))).encode())
        return digest.hexdigest()

    @property
    def longest(self) -> int:
        """The most tokens that the model reads."""
        return self.weights.limit

    def loglikelihoods(
        self, requests: list[Likelihood], *, wanted: Collection[int] | None = None, finished: Callable | None = None
    ) -> list[Outcome | None]:
        """An outcome per request, None for those not `wanted`."""
        encoded = likelihood.encode(self.tokenizer, requests, self.longest, bos=self.bos)
        self.truncated = [place for place, each in enumerate(encoded) if each.truncated]
        outcomes, walk, tell = [None] * len(encoded), _PrefixSession(Session(self.weights)), finished or nothing
        order = everything(wanted, requests)
        for index in sorted(order, key=lambda index: (encoded[index].inputs, -len(encoded[index].targets), index)):
            targets = torch.tensor(encoded[index].targets)
            found = walk.logits(encoded[index].inputs, len(targets))
            values, first = likelihood.read(found, torch.arange(len(targets)), targets, _same, found.shape[1])
            outcomes[index] = Outcome(float(values.sum()), bool(first.all()), len(targets))
            tell(index, outcomes[index])
        return outcomes

    def generate(
        self, requests: list[Generation], *, wanted: Collection[int] | None = None, finished: Callable | None = None
    ) -> list[str | None]:
        """A text per request, up to its first stop string; None for those not `wanted`.

        A finished row is replaced by the next prompt at once.
        """
        asked, wanted = self._asked(requests, finished), everything(wanted, requests)
        order = sorted(wanted, key=lambda index: (asked.prompts[index].tokens, index))
        self.answer(asked(order))
        return asked.texts

    def answer(self, asked: list[Request]) -> None:
        """Let the generation loop answer requests, `rows` at once."""
        if asked:
            Loop(Slots(self.weights, min(self.rows, len(asked))), asked).run()

    def seconds_per_token(self) -> tuple[float, float]:
        """(seconds per token read, seconds per token generated), from one trial of each after a warm-up."""
        prompt = [place * 7919 % self.weights.vocabulary for place in range(min(128, self.longest - 2))]
        batch = Batch(self.weights, self.rows)
        batch.extend({slot: prompt[slot % len(prompt) :] for slot in range(self.rows)})
        begin = timing.clock()
        Session(self.weights).extend(prompt, last=True)
        middle = timing.clock()
        batch.extend({slot: [0] for slot in range(self.rows)})
        return (middle - begin) / len(prompt), (timing.clock() - middle) / self.rows

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return ends.of_task(self.weights.stops, self.tokenizer)


class _PrefixSession:
    """A session that rewinds to the common prefix of consecutive sequences."""

    def __init__(self, session: Session):
        self.session, self.tokens, self.found = session, (), torch.empty(0)

    def logits(self, inputs: tuple[int, ...], count: int) -> Tensor:
        """Logits [count, vocabulary] of the last `count` positions of `inputs`."""
        if inputs == self.tokens and count <= len(self.found):
            return self.found[-count:]
        begin = len(inputs) - count
        known = min(prefixes.shared(self.tokens, inputs), begin)
        self.session.rewind(known)
        if known < begin:
            self.session.extend(inputs[known:begin], last=True)
        self.tokens, self.found = inputs, self.session.extend(inputs[begin:])
        return self.found


def is_packed(model) -> bool:
    """Whether `Packed` can run this: weights of `runtime.load`, or a model whose head `pack_` has packed."""
    if isinstance(model, Weights):
        return True
    return isinstance(blocks.head(model), PackedLinear)


def _same(given: Tensor) -> Tensor:
    return given


def _tokenizer(model):
    found = getattr(model, "tokenizer", None)
    if isinstance(model, Weights) and hasattr(found, "path"):
        return checkpoints.tokenizer(found.path.parent)
    if found is None:
        raise ValueError("a packed model without a tokenizer; give one as `tokenizer`.")
    return found
