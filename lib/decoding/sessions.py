"""Sessions: a model together with the tokens it has read, which can be rewound.

Generation needs three things of a model, so that transformers' models and the packed runtime serve the same loop:

    session.length                       tokens read so far (int)
    session.extend(tokens, last=False)   read tokens [k]; logits after each of them, float32 [k, vocabulary], or after
                                         the last one alone, [1, vocabulary], which is cheaper for a prompt
    session.rewind(length)               forget all tokens but the first `length`
"""

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lib.models import blocks, rotary, structure
from lib.models.logits import device, evaluating


class Session(Protocol):
    """The protocol, as above."""

    length: int

    def extend(self, tokens: Tensor, *, last: bool = False) -> Tensor: ...

    def rewind(self, length: int) -> None: ...


class ModelSession:
    """A causal language model of transformers behind the protocol: its own forward pass and its dynamic cache.

    Logits are those of a forward pass over the whole text so far: where position tables change with its length, keys
    of other tables are computed again. For a model with states that can't be rewound (Mamba's), or whose cache
    gives other logits, nothing is cached: each pass reads the whole text.
    kept: whether to use a cache; None tries it, once for each class of models and configuration.
    """

    def __init__(self, model: nn.Module, *, kept: bool | None = None):
        self.model = model.eval()
        self._keeps = keeps(model) if kept is None else kept
        self.limit: int | None = getattr(blocks.config(model), "max_position_embeddings", None)
        self._tables = rotary.Tables.of(model)
        self._tokens = torch.empty(0, dtype=torch.long)
        self.length = 0
        self._clear()

    @torch.no_grad()
    def extend(self, tokens: Tensor, *, last: bool = False) -> Tensor:
        """Read `tokens` (LongTensor [k], k from 1); logits after each, float32 [k, vocabulary], or after the last one.

        Raises ValueError for no tokens, for more than the model has positions, and for ids outside its vocabulary.
        """
        check_tokens(tokens, self.model.get_input_embeddings().num_embeddings)
        check_room(self, len(tokens))
        before, self._tokens = self.length, torch.cat([self._tokens, tokens.cpu()])
        self.length += len(tokens)
        with rotary.forgetting(self.model):
            if last:
                return self._pass(self.length, 1)
            return torch.cat([self._pass(end, count) for end, count in self._alike(before)])

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`; raises ValueError for more than were read."""
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind({length}) of a session of {self.length} tokens; choose 0 to {self.length}.")
        if length == self.length:
            return
        self.length, self._tokens = length, self._tokens[:length]
        if length < self._kept and length >= self._floor and length and self._tables.kind(length) == self._kind:
            self._cache.crop(length - self._kept)
            self._kept, self._floor = length, length if self._slides else 0
        elif length < self._kept:
            self._clear()

    def _pass(self, end: int, count: int) -> Tensor:
        """Read the unread part of the first `end` tokens; logits after the last `count` of them."""
        if (kind := self._tables.kind(end)) != self._kind:
            self._clear()
            self._kind = kind
        inputs = self._tokens[self._kept : end].to(device(self.model))[None]
        if not self._keeps:
            return self.model(input_ids=inputs, use_cache=False).logits[0, -count:].float()
        kept = 0 if inputs.shape[1] == count else count
        found = self.model(input_ids=inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=kept)
        self._kept = end
        return found.logits[0].float()

    def _alike(self, before: int) -> Iterator[tuple[int, int]]:
        """(end, tokens) of the runs of tokens from `before` on that use the same position tables."""
        ends = range(before + 1, self.length + 1)
        for _, run in itertools.groupby(ends, self._tables.kind):
            *_, end = found = list(run)
            yield end, len(found)

    def _clear(self) -> None:
        self._kept = self._floor = 0  # cached tokens, and the fewest to which a rewind may cut them
        self._kind = self._tables.kind(0)
        if not self._keeps:
            return
        self._cache = DynamicCache(config=self.model.config)
        # sliding windows would otherwise drop what a rewind needs; they still drop at each rewind what lies before it
        self._cache.activate_past_recording()
        self._slides = any(getattr(layer, "is_sliding", False) for layer in self._cache.layers)


_KEEP: dict[tuple[type, str], bool] = {}  # class and configuration of a model -> whether its cache gives its own logits


@torch.no_grad()
def keeps(model: nn.Module) -> bool:
    """Whether a session of `model` with a cache that is rewound has the logits of whole passes.

    Tried on a few tokens, once for each class of models and configuration.
    """
    config = structure.values(model.config.to_dict())
    kind = type(model), json.dumps([config, model.config._attn_implementation], sort_keys=True, default=str)
    if kind not in _KEEP:
        ids = torch.arange(5, 5 + 9) * 7 % model.get_input_embeddings().num_embeddings
        plain = copy.copy(getattr(model, "_orig_mod", model))  # without hooks and replacements: they see the real work
        vars(plain).pop("forward", None)
        vars(plain).update(_forward_hooks={}, _forward_pre_hooks={})
        with evaluating(plain):
            _KEEP[kind] = _agrees(plain, ids)
        if not _KEEP[kind]:
            print(f"{type(model).__name__} keeps no cache that can be cut back: each token reads the whole text again")
    return _KEEP[kind]


def _agrees(model: nn.Module, ids: Tensor) -> bool:
    """Whether a session that reads `ids` [9] in parts, and is rewound, gives the logits of one pass over them."""
    session = ModelSession(model, kept=True)
    if session.limit is not None and session.limit < len(ids):
        return True  # nothing worth caching
    own = model(input_ids=ids.to(device(model))[None], use_cache=False).logits[0, -3:].float()
    try:
        session.extend(ids[:5], last=True)
        session.extend(ids[5:8].flip(0))
        session.rewind(6)
        session.rewind(5)
        session.extend(ids[5:6], last=True)
        found = session.extend(ids[6:])
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    close = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((found - own).norm() <= close * own.norm()) or not own.isfinite().all()


def read(session: Session, tokens: Tensor) -> None:
    """Let `session` read `tokens` [k] (k from 0) whose logits are not needed."""
    if len(tokens):
        session.extend(tokens, last=True)


def room(session: Session) -> int | None:
    """The most tokens that `session` can read, its model's context; None where there is no limit."""
    weights = getattr(session, "weights", None)  # the packed runtime keeps the limit with its weights
    return getattr(session, "limit", None) or getattr(weights, "limit", None)


def rewind_to_common_prefix(session: Session, tokens: Tensor, known: Tensor) -> Tensor:
    """Rewind a session that has read `known` [any] to its common prefix with `tokens` [k]; the tokens left to read.

    At least the last token is left, whose logits are needed.
    """
    same = min(len(known), session.length, len(tokens) - 1)
    differs = (known[:same] != tokens[:same]).nonzero()
    same = int(differs[0]) if len(differs) else same
    session.rewind(same)
    return tokens[same:]


def check_tokens(tokens: Tensor, vocabulary: int) -> None:
    """Raise ValueError unless `tokens` are one or more integer ids [k] below `vocabulary`."""
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(
            f"a {tokens.dtype} tensor of shape {list(tokens.shape)} was given; a session reads integer token ids "
            "[length] of one text; take a row of a batch."
        )
    if not len(tokens):
        raise ValueError("no tokens were given; a session reads 1 or more; begin an empty prompt with the BOS token.")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(
            f"token ids from {int(tokens.min())} to {int(tokens.max())} were given; the model knows 0 to "
            f"{vocabulary - 1}; use the tokenizer that belongs to it."
        )


def check_room(session: Session, more: int) -> None:
    """Raise ValueError when `more` tokens do not fit behind those that the session has read."""
    limit = room(session)
    if limit is not None and session.length + more > limit:
        raise ValueError(
            f"{session.length} + {more} tokens do not fit the model's context of {limit}; "
            f"give at most {limit}; shorten the prompt or ask for fewer new tokens."
        )
