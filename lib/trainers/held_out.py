"""The loss on unseen text while a model trains, every so many tokens."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lib import files
from lib.metrics import perplexity
from lib.sources import texts
from lib.trainers import processes

FILE = "held_out.json"


class HeldOut:
    """Measures `model` on unseen `windows`; given to `loop.train_` as the function that it calls after each step.

    windows: token ids [count, length], or windows of a text. every: tokens of training between two measurements, in
    whole steps of `tokens_per_step`. folder: the training's, where it has one: what was measured is kept there too, so
    that a training that was killed and resumed ends with all of it. losses: step -> mean loss in nats a token.
    """

    def __init__(
        self, model: nn.Module, windows, *, every: int, tokens_per_step: int, folder: Path | str | None = None
    ):
        if not every >= tokens_per_step >= 1:
            raise ValueError(
                f"every={every} tokens with {tokens_per_step} of them a step; measurements come between steps, so as "
                "many or more are allowed; measure less often."
            )
        self.model, self.tokens = model, texts.tokens(windows, model)
        self.steps, self.tokens_per_step = every // tokens_per_step, tokens_per_step
        self.path = None if folder is None else Path(folder) / FILE
        self.losses: dict[int, float] = {}
        if self.path is not None and self.path.exists():
            self.losses = {int(step): loss for step, loss in json.loads(self.path.read_text()).items()}

    def __call__(self, step: int, loss: float) -> None:
        """Measure, where `step` is due."""
        if step % self.steps == 0:
            self.measure(step)

    def measure(self, step: int) -> float:
        """Measure now, as after `step`; the loss in nats a token."""
        self.losses[step] = perplexity.nll(self.model, self.tokens).double().mean().item()
        if self.path is not None and processes.first():
            files.write_text(self.path, json.dumps(dict(sorted(self.losses.items()))))
        return self.losses[step]

    def curve(self) -> list[tuple[int, float]]:
        """(Tokens of training, loss) in order."""
        return [(step * self.tokens_per_step, loss) for step, loss in sorted(self.losses.items())]

    def bits_per_byte(self, tokenizer) -> list[tuple[int, float]]:
        """(Tokens of training, bits per byte of the windows), comparable between tokenizers."""
        predicted = self.tokens[:, 1:]
        size = sum(len(tokenizer.decode(row).encode()) for row in predicted.tolist())
        scale = predicted.numel() / size / math.log(2)
        return [(tokens, loss * scale) for tokens, loss in self.curve()]


def without_context(stream: np.ndarray, unseen: torch.Tensor, vocabulary: int) -> float:
    """Mean loss, in nats a token, of who only knows how often each token occurs in the training text.

    stream: the training text's token ids [tokens]; each of the `vocabulary` counts once more than it occurs there. The
    loss is that of the tokens of `unseen` [count, length] that a model predicts.
    """
    counts = torch.from_numpy(np.bincount(np.asarray(stream, np.int64), minlength=vocabulary)).double() + 1
    return -(counts / counts.sum()).log()[unseen[:, 1:]].mean().item()


def overlap(seen: torch.Tensor, unseen: torch.Tensor) -> int:
    """How many rows of `unseen` token ids [count, length] stand in `seen` [rows, length] as they are."""
    known = {tuple(row) for row in seen.tolist()}
    return sum(tuple(row) in known for row in unseen.tolist())
