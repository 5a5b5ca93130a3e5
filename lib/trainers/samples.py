"""What a model writes while it learns: greedy continuations of one prompt, at a few points of a training."""

from collections.abc import Callable

import torch
from torch import nn

from lib import tokenization
from lib.decoding.generate import generate
from lib.decoding.sessions import ModelSession
from lib.models.logits import evaluating

POINTS = 5


class Samples:
    """Given to `from_scratch.train` as `watch`: continues `prompt` at `points` of `steps`, the first and the last too.

    texts: step -> what followed the prompt. then: called with the same arguments, for a second watcher. Nothing is
    drawn at random, so that the training stays what it would be. Raises ValueError for an empty prompt and no points.
    """

    def __init__(
        self,
        tokenizer,
        prompt: str,
        steps: int,
        *,
        new_tokens: int = 24,
        points: int = POINTS,
        then: Callable | None = None,
    ):
        self.ids = tokenization.ids(tokenizer, [prompt], False)[0]
        if not self.ids or points < 1 or steps < 1 or new_tokens < 1:
            raise ValueError(
                f"prompt={prompt!r}, steps={steps}, new_tokens={new_tokens} and points={points}; a prompt of a token "
                "or more, and numbers from 1, are allowed; change one."
            )
        self.tokenizer, self.new_tokens, self.then = tokenizer, new_tokens, then
        self.steps = {max(1, round(steps * place / max(1, points - 1))) for place in range(points)}
        self.texts: dict[int, str] = {}

    def __call__(self, model: nn.Module, step: int, loss: float) -> None:
        """Write, where `step` is one of the points."""
        if step in self.steps:
            self.texts[step] = self.write(model)
        if self.then:
            self.then(model, step, loss)

    def write(self, model: nn.Module) -> str:
        """What `model` makes of the prompt now."""
        with evaluating(model):
            found = generate(
                ModelSession(model), torch.tensor(self.ids), new_tokens=self.new_tokens, tokenizer=self.tokenizer,
                plain=True,
            )  # fmt: skip
        return found.text
