"""The loss on answers that a model has not learned from, in bits per byte: comparable between tokenizers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lib import progress
from lib.metrics.score import Score, bootstrap
from lib.models import logits
from lib.trainers import minibatch, token_logp
from lib.trainers.minibatch import IGNORED


class AnswerLoss(NamedTuple):
    """Of each row: bits that its answers cost, their bytes, and their tokens."""

    bits: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    @property
    def per_byte(self) -> Score:
        """All bits over all bytes, with a bootstrap over rows; lower is better."""
        pairs = np.stack([self.bits, self.bytes], 1)

        def ratio(samples, axis=0):
            return samples[..., 0].sum(axis) / samples[..., 1].sum(axis)

        return Score(float(ratio(pairs)), bootstrap(pairs, ratio), len(pairs), "bits/byte", False)


def measure(model: nn.Module, rows: Sequence[dict], tokenizer=None) -> AnswerLoss:
    """The bits of the labelled tokens of `rows` (`answer_rows.rows`) under `model`, each row by itself.

    tokenizer: `model.tokenizer` where None. Bytes are those of the labelled text, end tokens left out.
    """
    tokenizer, device, found = tokenizer or model.tokenizer, logits.device(model), []
    with logits.evaluating(model), torch.no_grad():
        for row in progress.bar(rows, desc="answers", unit="row"):
            batch = {name: each.to(device) for name, each in minibatch.collate([row]).items()}
            logp, tokens = token_logp.of_rows(model, batch)
            learned = row["labels"][row["labels"] != IGNORED]
            size = len(tokenizer.decode(learned, skip_special_tokens=True).encode())
            found.append((-float(logp) / math.log(2), size, int(tokens)))
    return AnswerLoss(*map(np.array, zip(*found)))
