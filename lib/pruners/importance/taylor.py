"""Taylor: the first-order change of the loss if each weight of a block were set to zero.

Source: Shortened LLaMA, Kim et al., arXiv 2402.02834, section 3.1, I_Taylor.
"""

import torch
from torch import Tensor, nn

from lib import progress
from lib.models import logits
from lib.models.blocks import blocks, is_quantized
from lib.pruners.importance import passes


def score(model: nn.Module, calibration) -> list[float]:
    """Σ |∂L/∂W · W| over all weights of the block's matrices, L the mean next-token loss of the calibration text.

        |L(W_ij; D) - L(W_ij = 0; D)| ≈ |∂L(D)/∂W_ij · W_ij|

    Takes one forward and one backward pass, and memory for the blocks' gradients in float32.
    Raises ValueError for quantized models, whose codes have no gradient.
    """
    tokens = passes.tokens_of(model, calibration)
    groups = [matrices(block) for block in blocks(model)]
    total = _gradients(model, [weight for group in groups for weight in group], tokens)
    found = ((gradient * weight.detach()).abs_().sum(dtype=torch.float64).item() for weight, gradient in total)
    return [sum(next(found) for _ in group) for group in groups]


def matrices(block: nn.Module) -> list[nn.Parameter]:
    """The weight matrices of `block`, biases and norms left out; ValueError when some of them are quantized."""
    if any(is_quantized(module) for module in block.modules()):
        raise ValueError(
            f"{type(block).__name__} holds quantized layers, whose weights are codes; this score needs weights; "
            "prune first, or score by leave_one_out or block_influence."
        )
    return [weight for weight in block.parameters() if weight.ndim > 1]


def _gradients(model: nn.Module, weights: list[nn.Parameter], tokens: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Each weight with ∂L/∂W in float32; parameters and their `.grad` stay as they were."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    with logits.evaluating(model), torch.enable_grad():
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            for window in progress.bar(tokens.to(logits.device(model)), desc="taylor", unit="window"):
                loss = model(input_ids=window[None], labels=window[None], use_cache=False).loss / len(tokens)
                # an expert that no token reached has no gradient
                for sums, found in zip(total, torch.autograd.grad(loss, weights, allow_unused=True)):
                    if found is not None:
                        sums += found
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
    return list(zip(weights, total))
