"""Sessions: a model, the tokens it has read, and a way back.

Whatever generates here needs three things of a model, so that transformers' models and the packed runtime serve the
same loop:

    session.length                       tokens read so far (int)
    session.extend(tokens, last=False)   read tokens [k]; logits after each of them, float32 [k, vocabulary], or after
                                         the last one alone, [1, vocabulary], which is cheaper for a prompt
    session.rewind(length)               forget all tokens but the first `length`
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from lib.models.logits import device


class Session(Protocol):
    """The protocol, as above."""

    length: int

    def extend(self, tokens: Tensor, *, last: bool = False) -> Tensor: ...

    def rewind(self, length: int) -> None: ...


class ModelSession:
    """A causal language model of transformers behind the protocol: its own forward pass and its dynamic cache."""

    def __init__(self, model: nn.Module):
        from lib.models import blocks

        self.model = model.eval()
        self.limit: int | None = getattr(blocks.config(model), "max_position_embeddings", None)
        self._clear()

    @torch.no_grad()
    def extend(self, tokens: Tensor, *, last: bool = False) -> Tensor:
        """Read `tokens` (LongTensor [k], k from 1); logits after each, float32 [k, vocabulary], or after the last one.

        Raises ValueError for no tokens, for more than the model has positions, and for ids that it does not know.
        """
        check_tokens(tokens, self.model.get_input_embeddings().num_embeddings)
        check_room(self, len(tokens))
        inputs, kept = tokens.to(device(self.model))[None], 1 if last else 0
        found = self.model(input_ids=inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=kept)
        self._tokens = torch.cat([self._tokens, tokens.cpu()])
        self.length += len(tokens)
        return found.logits[0].float()

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`; raises ValueError for more than were read."""
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind({length}) of a session of {self.length} tokens; choose 0 to {self.length}.")
        if length == self.length:
            return
        if length and length >= self._floor:
            self._cache.crop(length - self.length)
            self.length = length
            self._floor = length if self._slides else 0
        else:
            kept = self._tokens[:length]
            self._clear()
            read(self, kept)
        self._tokens = self._tokens[:length]

    def _clear(self) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self.model.config)
        # sliding windows would otherwise drop what a rewind needs; they still drop at each rewind what lies before it
        self._cache.activate_past_recording()
        self._slides = any(getattr(layer, "is_sliding", False) for layer in self._cache.layers)
        self._tokens = torch.empty(0, dtype=torch.long)
        self.length = self._floor = 0


def read(session: Session, tokens: Tensor) -> None:
    """Let `session` read `tokens` [k] (k from 0) whose logits are not needed."""
    if len(tokens):
        session.extend(tokens, last=True)


def room(session: Session) -> int | None:
    """The most tokens that `session` can read, its model's context; None where there is no limit."""
    weights = getattr(session, "weights", None)  # the packed runtime keeps the limit with its weights
    return getattr(session, "limit", None) or getattr(weights, "limit", None)


def move(session: Session, tokens: Tensor, known: Tensor) -> Tensor:
    """Rewind a session that has read `known` [any] to what it shares with `tokens` [k]; the tokens left to read.

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
