"""Recovery: the fraction of the quality lost by pruning that healing restores, with its interval.

1 is the original's quality, 0 the pruned model's; below 0 is worse than before healing. For perplexity it may exceed 1:
a model trained on text of the same kind can predict it better than the original. For the divergence from the original
it cannot.
"""

import numpy as np
import torch

from lib.metrics.divergence import Comparison
from lib.metrics.score import Score, bootstrap

UNIT = "share of the gap"


def perplexity(original: torch.Tensor, pruned: torch.Tensor, healed: torch.Tensor) -> Score:
    """(P_pruned - P_healed) / (P_pruned - P_original) of the perplexities P on the same windows.

    All three: negative log-likelihoods in nats [windows, positions], as `metrics.perplexity.nll` and
    `Comparison.nll` give them. The standard error is paired: the bootstrap draws windows, each with all three
    models, so that the difficulty of a window cancels. Raises ValueError for other windows, and where pruning lost
    nothing.
    """
    per_window = _paired({"original": original, "pruned": pruned, "healed": healed})

    def fraction(values: np.ndarray, axis: int = 0) -> np.ndarray:
        first, cut, now = np.moveaxis(np.exp(values.mean(axis)), -1, 0)
        return (cut - now) / (cut - first)

    before, after = np.exp(per_window.mean(0))[:2]
    if not after > before:
        raise ValueError(
            f"the pruned model's perplexity is {after:.4g} and the original's {before:.4g}; a fraction needs a gap; "
            "remove more blocks, or measure on more text."
        )
    return Score(fraction(per_window), bootstrap(per_window, fraction), len(per_window), UNIT, True, 0.0)


def divergence(pruned: Comparison, healed: Comparison) -> Score:
    """1 - KL_healed / KL_pruned, mean KL divergences from the original on the same windows; paired as `perplexity`."""
    per_window = _paired({"pruned": pruned.divergence, "healed": healed.divergence})

    def fraction(values: np.ndarray, axis: int = 0) -> np.ndarray:
        cut, now = np.moveaxis(values.mean(axis), -1, 0)
        return 1 - now / cut

    if not per_window[:, 0].mean() > 0:
        raise ValueError("the pruned model answers as the original does; a fraction needs a gap; remove blocks first.")
    return Score(fraction(per_window), bootstrap(per_window, fraction), len(per_window), UNIT, True, 0.0)


def _paired(parts: dict[str, torch.Tensor]) -> np.ndarray:
    """Means over the positions, float64 [windows, parts]."""
    shapes = {name: list(values.shape) for name, values in parts.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(
            f"windows of {', '.join(f'{name} {shape}' for name, shape in shapes.items())}; pairs need the same ones; "
            "measure all models on the same text."
        )
    return np.stack([values.double().mean(1).numpy() for values in parts.values()], axis=1)
