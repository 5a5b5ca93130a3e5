"""Leave-one-out loss: how much worse the model predicts the text when a block is missing.

Source: Shortened LLaMA, Kim et al., arXiv 2402.02834, section 3.1, I_PPL.
"""

from torch import Tensor, nn

from lib.metrics.perplexity import predicted, surprise
from lib.pruners.importance import passes


def score(model: nn.Module, calibration) -> list[float]:
    """Rise of the mean negative log-likelihood, in nats a token, when that block alone is left out.

        I_PPL^n = exp(-1/(SL) Σ_s Σ_l log p_{θ without n}(x_l | x_<l))

    gives the same order as its logarithm, from which the whole model's is subtracted here: exp of a score is the
    factor by which the perplexity grows, and a negative score means that the model is better without the block.
    Takes n(n + 1)/2 block passes and n + 1 of the head.
    """
    tokens = passes.tokens_of(model, calibration)
    without, whole = passes.left_out(model, tokens, lambda hidden: _nll(model, hidden, tokens), "leave one out")
    return [loss - whole for loss in without]


def _nll(model: nn.Module, hidden: Tensor, tokens: Tensor) -> float:
    """Mean negative log-likelihood of `tokens` [count, length] from the hidden states after the last block."""
    found = passes.predictions(model, hidden)
    sums = [surprise(rows, tokens[window, 1:][some]).double().sum().item() for window, some, rows in found]
    return sum(sums) / predicted(tokens)
