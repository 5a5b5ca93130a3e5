"""Context for measurements: eval mode, no gradients, and nothing left over from earlier calls."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lib.models import rotary


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Context with eval mode and without gradients; every module's own mode is restored after it.

    Position tables that grow with the text are those of each call's own length (`rotary.forgetting`).
    """
    training = [module for model in models for module in model.modules() if module.training]
    try:
        with contextlib.ExitStack() as stack:
            for model in models:
                model.eval()
                stack.enter_context(rotary.forgetting(model))
            # not inference_mode: a matrix that a layer caches in a pass must be usable in later training
            stack.enter_context(torch.no_grad())
            yield
    finally:
        for module in training:
            module.training = True
