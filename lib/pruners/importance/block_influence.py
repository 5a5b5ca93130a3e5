"""Block influence: how much a block turns the hidden states.

Source: ShortGPT, Men et al., arXiv 2403.03853, equation 1.
"""

from torch import Tensor, nn

from lib.pruners.importance import passes


def score(model: nn.Module, calibration) -> list[float]:
    """1 - mean cosine similarity between the hidden states before and after the block, over all tokens.

    0 for a block that only scales its input. Takes one pass over the blocks and none of the head.
    """
    tokens = passes.tokens_of(model, calibration)

    def influence(before: Tensor, after: Tensor) -> float:
        # BI_i = 1 - E[X_iᵀ X_{i+1} / (‖X_i‖ ‖X_{i+1}‖)]
        return 1 - nn.functional.cosine_similarity(before.float(), after.float(), dim=-1).double().mean().item()

    return passes.each_block(model, tokens, influence, "block influence")
