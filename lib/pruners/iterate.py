"""Iterative pruning: removes a few blocks, heals the model, and repeats.

Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679,
section 4 (iterative against one-shot pruning).
"""

from collections.abc import Callable, Sequence

from torch import nn

from lib.models import blocks
from lib.pruners import depth, heal
from lib.trainers import loop


def prune_and_heal_(
    model: nn.Module,
    counts: Sequence[int],
    choose: Callable[[nn.Module, int], Sequence[int]],
    heal_: Callable[[nn.Module, list[int]], object],
) -> list[list[int]]:
    """In rounds, remove as many blocks of `model` as `counts` says and heal what is left, in place.

    choose(model, count) -> the blocks to remove next, as the smaller model counts them; importance is thus judged
    anew after each healing. heal_(model, gaps): gaps are the blocks of the present model before which others were
    removed. Returns the blocks removed in each round, as the model counted them at the start. Raises ValueError, before
    anything is removed, for counts that are below 1 or leave no block.
    """
    names = list(range(len(blocks.blocks(model))))
    if not counts or min(counts) < 1 or sum(counts) >= len(names):
        raise ValueError(
            f"counts={list(counts)} of {len(names)} blocks; rounds of 1 or more are allowed, "
            f"{len(names) - 1} in all; remove fewer."
        )
    rounds = []
    for count in counts:
        removed = sorted(choose(model, count))
        depth.drop_blocks_(model, removed)
        rounds.append([names[index] for index in removed])
        names = [name for index, name in enumerate(names) if index not in removed]
        heal_(model, gaps(names))
    return rounds


def in_rounds_(
    model: nn.Module, counts: Sequence[int], calibration, windows, *, tokens: int, score: str = "block_influence", **way
) -> list[list[int]]:
    """`prune_and_heal_` by an importance `score` on `calibration`, with an equal share of `tokens` after each round.

    Each round heals on windows of its own, every `len(counts)`-th one, so that several rounds read no other text than
    one round would, and none twice. way: options of `heal.heal_` (way, teacher, learning_rate, ...).
    Returns and raises what `prune_and_heal_`, `depth.choose` and `heal_` do.
    """
    ids, places = loop.tokens_of(windows, model), iter(range(len(counts)))

    def choose(model: nn.Module, count: int) -> list[int]:
        return depth.choose(model, calibration, score=score, blocks=count)

    def heal_(model: nn.Module, before: list[int]) -> None:
        part = ids[next(places) :: len(counts)]
        heal.heal_(model, part, first=min(before, default=0), tokens=tokens // len(counts), **way)

    return prune_and_heal_(model, counts, choose, heal_)


def gaps(names: Sequence[int]) -> list[int]:
    """Places in `names`, the blocks that are left by their old numbers, before which at least one is missing.

    Blocks missing at the end leave no gap between others.
    """
    before = [-1, *names]
    return [place for place, name in enumerate(names) if name != before[place] + 1]
