"""Angular distance: how far a run of neighbouring blocks turns the hidden state of a text's last token.

Source: The Unreasonable Ineffectiveness of the Deeper Layers, Gromov et al., arXiv 2403.17887, section 3.2.
"""

import math

import torch
from torch import Tensor, nn

from lib.models.blocks import blocks
from lib.pruners.importance import passes


def score(model: nn.Module, calibration, *, span: int = 1) -> list[float]:
    """Distance between what enters block i and what leaves block i + span - 1, from 0 to 1, mean over windows.

        d(x^l, x^{l+n}) = 1/π · arccos(x_T^l · x_T^{l+n} / (‖x_T^l‖ ‖x_T^{l+n}‖)),     T the last position

    The lowest score says where the span that changes least begins; starts too late for a whole span are infinite.
    Takes one pass over the blocks and none of the head. Raises ValueError for a span longer than the model, or below 1.
    """
    tokens = passes.tokens_of(model, calibration)
    count = len(blocks(model))
    if isinstance(span, bool) or not isinstance(span, int) or not 1 <= span <= count:
        raise ValueError(f"span={span!r} of a model with {count} blocks; choose a whole number from 1 to {count}.")

    def ends(before: Tensor, after: Tensor) -> list[Tensor]:
        return [before[:, -1].double().cpu(), after[:, -1].double().cpu()]

    found = passes.each_block(model, tokens, ends, "angular distance")
    last = [found[0][0], *(after for _, after in found)]
    states = nn.functional.normalize(torch.stack(last), dim=-1)  # [n + 1, windows, hidden size]
    cosine = (states[:-span] * states[span:]).sum(-1).clamp(-1, 1)
    return [*(cosine.arccos().mean(1) / math.pi).tolist(), *[math.inf] * (span - 1)]
