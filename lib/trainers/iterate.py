"""Prune, heal, prune, heal: a model that loses its blocks a few at a time recovers before the next ones go.

Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679,
section 4 (iterative against one-shot pruning).
"""

from collections.abc import Callable, Sequence

from torch import nn

from lib.models import blocks
from lib.pruners import depth


def prune_and_heal_(
    model: nn.Module,
    counts: Sequence[int],
    choose: Callable[[nn.Module, int], Sequence[int]],
    heal_: Callable[[nn.Module, list[int]], object],
) -> list[list[int]]:
    """In rounds, remove as many blocks of `model` as `counts` says and heal what is left, in place.

    choose(model, count) -> the blocks to remove next, as the smaller model counts them; importance is thus judged
    anew after each healing. heal_(model, gaps) is told before which blocks of the present model something is missing.
    Returns the blocks removed in each round, as the model counted them at the start.
    Raises ValueError, before anything is removed, for counts that are below 1 or leave no block.
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


def gaps(names: Sequence[int]) -> list[int]:
    """Places in `names`, the blocks that are left by their old numbers, before which at least one is missing.

    Blocks missing at the end leave no gap between others.
    """
    before = [-1, *names]
    return [place for place, name in enumerate(names) if name != before[place] + 1]
