"""Depth pruning: chooses whole blocks and removes them, which leaves an ordinary, smaller model."""

import importlib
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from lib import files
from lib.models.blocks import blocks as blocks_of
from lib.pruners import importance, one_shot
from lib.pruners.budget import Budget
from lib.pruners.drop import check, drop_blocks_, without
from lib.pruners.importance import passes

__all__ = ["WAYS", "checked", "choose", "drop_blocks_", "lowest", "prune_", "without"]

# choose(model, tokens, met, *, score, free, state) -> list of blocks to remove
WAYS = {name: f"lib.pruners.{name}" for name in ("one_shot", "contiguous", "greedy")}


def prune_(model: nn.Module, calibration, **options) -> list[int]:
    """Remove blocks of `model` in place; returns them, counted from 0 as in the whole model. Arguments: `choose`'s."""
    removed = choose(model, calibration, **options)
    drop_blocks_(model, removed)
    return removed


def choose(
    model: nn.Module,
    calibration,
    *,
    way: str = "one_shot",
    score: str = "leave_one_out",
    protect: Iterable[int] = (),
    state=None,
    budget: Budget | None = None,
    **wanted,
) -> list[int]:
    """The blocks that `prune_` would remove, in order of removal; `model` is not changed.

    way: "one_shot", "contiguous" (one span) or "greedy" (scored anew after each block; `state`, a folder, makes it
    resumable). score: one of `importance.SCORES`. protect: blocks that stay. wanted: how far, by one or more of
    blocks, ratio, parameters, megabytes, memory_megabytes, tokens_per_second (and phase), as `budget.Budget` says.
    Raises ValueError, before the work, for names, blocks and budgets that don't exist or can't be met, for models that
    are no decoders, and for blocks of different kinds that can't take each other's place.
    """
    protect = list(protect)
    tokens, free = checked(model, calibration, way=way, score=score, protect=protect)
    budget = budget or Budget(model, sorted(set(protect)), **wanted)
    if budget.met([]):
        return []
    return importlib.import_module(WAYS[way]).choose(model, tokens, budget.met, score=score, free=free, state=state)


def checked(model: nn.Module, calibration, *, way: str, score: str, protect: list[int]) -> tuple[Tensor, list[int]]:
    """(token ids [count, length], the blocks that may go), or the ValueError of `choose`; nothing is scored."""
    if way not in WAYS:
        raise ValueError(f"way={way!r} is unknown; {files.choices(way, WAYS)}")
    importance.by_name(score)
    tokens, free = passes.tokens_of(model, calibration), _free(model, protect)
    check(model, free[:1])  # each later block moves up by one: if that is possible, so is any choice
    return tokens, free


def lowest(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` blocks with the lowest `scores`, ascending; of equal scores the later block goes first.

    Raises ValueError when `count` is negative or leaves no block, when a score is NaN, or when so many infinite
    scores protect their blocks that not enough can go.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < len(scores):
        raise ValueError(f"{count!r} of {len(scores)} blocks to remove; choose 0 to {len(scores) - 1}: one must stay.")
    ordered = one_shot.order(scores, range(len(scores)))
    return sorted(one_shot.prefix(ordered, lambda removed: len(removed) == count))


def _free(model: nn.Module, kept: list[int]) -> list[int]:
    """Indices of removable blocks; ValueError for protected blocks that don't exist, or when none is removable."""
    count = len(blocks_of(model))
    if wrong := [index for index in kept if isinstance(index, bool) or index not in range(count)]:
        raise ValueError(f"protect={kept}: {wrong} are no blocks; the model has blocks 0 to {count - 1}; name those.")
    free = [index for index in range(count) if index not in kept]
    if not free:
        raise ValueError(f"protect={kept} protects all {count} blocks; at least one must be left to remove.")
    return free
