"""One-shot pruning: scores the blocks once and removes the lowest."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib.pruners import importance


def choose(
    model: nn.Module, tokens: Tensor, met: Callable[[list[int]], bool], *, score: str, free: Sequence[int], state=None
) -> list[int]:
    """Blocks to remove, least important first: as few of `free` as it takes until `met(blocks)`.

    tokens: calibration windows [count, length]. Source: Shortened LLaMA, Kim et al., arXiv 2402.02834, section 3.2.
    """
    scores = importance.score(score, model, tokens)
    return prefix(order(scores, free), met)


def order(scores: Sequence[float], free: Sequence[int]) -> list[int]:
    """`free` blocks, lowest score first; of equal scores the later block; those with an infinite score stay.

    Raises ValueError for a score that is NaN.
    """
    if bad := torch.tensor(scores).isnan().nonzero().flatten().tolist():
        raise ValueError(f"the scores of blocks {bad} are NaN; all must be numbers; check the model and the text.")
    return sorted((index for index in free if scores[index] < float("inf")), key=lambda index: (scores[index], -index))


def prefix(ordered: list[int], met: Callable[[list[int]], bool]) -> list[int]:
    """The shortest prefix of `ordered` with which the budget is `met`; ValueError where all of them are not enough."""
    for length in range(len(ordered) + 1):
        if met(ordered[:length]):
            return ordered[:length]
    raise ValueError(
        f"the score protects all but {len(ordered)} of the blocks that may go ({sorted(ordered)}), too few for this "
        "budget; ask for less, or score by another."
    )
