"""Contiguous pruning: removes the span of neighbouring blocks that changes the hidden state least.

Source: The Unreasonable Ineffectiveness of the Deeper Layers, Gromov et al., arXiv 2403.17887, section 3.1.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lib.pruners import importance
from lib.pruners.one_shot import order


def choose(
    model: nn.Module, tokens: Tensor, met: Callable[[list[int]], bool], *, score: str, free: Sequence[int], state=None
) -> list[int]:
    """The neighbouring blocks to remove, ascending: the shortest span of `free` blocks with which `met(blocks)`.

        l*(n) = argmin_l d(x^l, x^{l+n})

    tokens: calibration windows [count, length]. Scores other than `angular_distance`, which measures a whole span,
    are summed over it. Raises ValueError where no span among `free` meets the budget.
    """
    blocks = None if score == "angular_distance" else importance.score(score, model, tokens)
    length = 0
    while True:
        starts = [index for index in free if set(range(index, index + length)) <= set(free)]
        if not starts:
            raise ValueError(
                f"no {length} neighbouring blocks among {list(free)} meet this budget; protect fewer, ask for less, or "
                "use way='one_shot'."
            )
        if met(list(range(starts[0], starts[0] + length))):
            break
        length += 1
    if not length:
        return []
    if blocks is None:
        spans = importance.score(score, model, tokens, span=length)
    else:
        spans = [sum(blocks[start : start + length]) for start in range(len(blocks))]
    best = order(spans, starts)
    if not best:
        raise ValueError(f"every span of {length} blocks holds one that {score} protects; ask for less.")
    return list(range(best[0], best[0] + length))
