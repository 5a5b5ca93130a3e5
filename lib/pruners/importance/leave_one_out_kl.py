"""Leave-one-out divergence: the KL from the original's predictions when a block is missing.

The text is only one sample of possible continuations; the original's distribution covers all of them, so that fewer
tokens give the same certainty.
"""

from torch import Tensor, nn

from lib.metrics import divergence
from lib.pruners.importance import passes


def score(model: nn.Module, calibration, *, reference=None) -> list[float]:
    """Mean KL(original || model without that block), in nats a token.

    reference: what `metrics.divergence.remember` kept of the original on this very text, for a model that has lost
    blocks already; None compares with `model` itself. Takes n(n + 1)/2 block passes and 2n of the head.
    """
    tokens = passes.tokens_of(model, calibration)
    reference = reference or divergence.remember(model, tokens)
    reference.check(tokens)
    without, _ = passes.left_out(model, tokens, lambda hidden: _divergence(model, reference, hidden), "divergence")
    return without


def _divergence(model: nn.Module, reference, hidden: Tensor) -> float:
    total = 0.0
    for window, some, q in passes.predictions(model, hidden):
        p = reference.rows(window, 1)(some).float().log_softmax(-1).to(q.device)
        total += (p.exp() * (p - q)).sum().item()
    return total / hidden[:, 1:, 0].numel()
