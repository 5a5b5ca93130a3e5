"""How fast a training was, and which share of the machine it used."""

import statistics

from torch import nn

from lib.metrics import count
from lib.trainers.history import History


def tokens_per_second(history: History) -> float:
    """Tokens a second, from the median step; the first, which also sets up (and compiles), is left out."""
    return history.tokens_per_step / statistics.median(_steps(history)[1:] or _steps(history))


def start_up(history: History) -> float:
    """Seconds that the first step took longer than the median one: what loading data and compiling cost."""
    steps = _steps(history)
    return max(0.0, steps[0] - statistics.median(steps[1:] or steps))


def mfu(history: History, model: nn.Module, length: int, peak: float | None) -> float | None:
    """The share of `peak` FLOP/s (of `metrics.peaks`, None where unknown) that went into the model's products.

    length: tokens of a row, which attend to half of it on average. The backward pass takes twice the operations of the
    forward pass (Chowdhery et al., PaLM, arXiv 2204.02311, appendix B); what gradient checkpointing repeats isn't
    counted.
    """
    if not peak:
        return None
    return 3 * count.flops_per_token(model, length // 2) * tokens_per_second(history) / peak


def _steps(history: History) -> list[float]:
    """Seconds of each step."""
    if not history.seconds:
        raise ValueError("the training took no step; 1 or more are needed; train longer.")
    return [after - before for before, after in zip([0.0, *history.seconds], history.seconds)]
