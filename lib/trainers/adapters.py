"""Chooses the trained weights: all weights of the blocks, low-rank adapters, or head and last blocks only.

Each is a context manager that makes these weights trainable and restores the model's settings when it ends:

    with adapters.lora_(model, rank=16):
        loop.train_(model, windows, next_token.loss, tokens=500_000, learning_rate=1e-3)

The model is an ordinary one afterwards: adapters are merged, and no weight requires a gradient that did not before.
"""

import contextlib
import weakref
from collections.abc import Iterable, Iterator

from torch import nn

from lib.models import blocks
from lib.trainers import low_rank
from lib.trainers.low_rank import RANK

LAST = 3  # blocks that the simple recipe trains with the head
_CHOSEN = weakref.WeakKeyDictionary()  # model -> names and values by which its trained weights were chosen


@contextlib.contextmanager
def noted(model: nn.Module, **names) -> Iterator[None]:
    """Context in which `chosen(model)` has these names and values; a resumed training must have the same."""
    before = chosen(model)
    _CHOSEN[model] = before | names
    try:
        yield
    finally:
        _CHOSEN[model] = before


def chosen(model: nn.Module) -> dict:
    """The settings by which the trained weights of `model` were chosen; empty where no function of this module did."""
    return _CHOSEN.get(model, {})


@contextlib.contextmanager
def full_(model: nn.Module, *, first: int = 0, embeddings: bool = False) -> Iterator[nn.Module]:
    """Continued pre-training: all weights of the blocks and the final norm; with `embeddings` every weight there is.

    Removing blocks affects neither embedding nor head, which in a small model are a fifth of all weights. first: the
    first block that is trained. Blocks before the first removed one are not affected either; freezing them saves
    time.
    """
    count = len(blocks.blocks(model))
    if not 0 <= first <= count or (first and embeddings):
        raise ValueError(
            f"first={first} and embeddings={embeddings} with {count} blocks; 0 to {count} are allowed, and 0 where "
            "the embeddings are trained; change one."
        )
    parts = [model] if embeddings else [*list(blocks.blocks(model))[first:], *blocks.final_norms(model)]
    names = {"trained": "full", "first": first, "embeddings": embeddings}
    with noted(model, **names), _only(model, (weight for part in parts for weight in part.parameters())):
        yield model


@contextlib.contextmanager
def head_and_last_(model: nn.Module, *, last: int = LAST) -> Iterator[nn.Module]:
    """The simple recipe: the head (with it the embedding, where they are one matrix), final norm and `last` blocks.

    Source: Gromov et al. heal with adapters; training head and last layers only is what Sajjad et al., arXiv
    2004.03844, and LLM-Streamline, arXiv 2403.19135, compare with.
    """
    count = len(blocks.blocks(model))
    if not 0 <= last <= count:
        raise ValueError(f"last={last} of {count} blocks to train; 0 to {count} are allowed; choose fewer.")
    parts = [blocks.head(model), *blocks.final_norms(model), *list(blocks.blocks(model))[count - last :]]
    names = {"trained": "head", "last": last}
    with noted(model, **names), _only(model, (weight for part in parts for weight in part.parameters())):
        yield model


@contextlib.contextmanager
def lora_(
    model: nn.Module, *, first: int = 0, rank: int = RANK, alpha: float | None = None, seed: int = 0
) -> Iterator[nn.Module]:
    """Low-rank adapters W + (α / r) B A on every linear layer of the blocks, through peft; merged when the block ends.

    first: the first block with adapters. alpha: 2 r where it is None. seed: draws A; B starts at zero, so the model
    starts unchanged. If the context ends by an exception, the adapters are removed and the weights stay unchanged.
    Source: Hu et al., arXiv 2106.09685, section 4.1.
    """
    alpha = 2 * rank if alpha is None else alpha
    with low_rank.wrapped_(model, kind="lora", rank=rank, alpha=alpha, first=first, seed=seed) as wrapped:
        with noted(model, trained="lora", first=first, rank=rank, alpha=alpha):
            yield model
        wrapped.merge_adapter()


WAYS = {"full": full_, "lora": lora_, "head": head_and_last_}


@contextlib.contextmanager
def _only(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context in which only these `weights` require a gradient."""
    before, kept = {each: each.requires_grad for each in model.parameters()}, set(weights)
    try:
        for each in before:
            each.requires_grad_(each in kept)
        yield
    finally:
        for each, required in before.items():
            each.requires_grad_(required)
