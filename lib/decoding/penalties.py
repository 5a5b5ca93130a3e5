"""Penalties on tokens that were used before, and biases, as servers define them; transformers has none of these.

Each is a processor like those of transformers: called with the tokens so far [1, length] and scores [1, vocabulary].
"""

import torch
from torch import Tensor


class Frequency:
    """Subtracts `penalty` times a token's share of all tokens so far, prompt included (text-generation-inference)."""

    def __init__(self, penalty: float):
        self.penalty = penalty

    def __call__(self, history: Tensor, scores: Tensor) -> Tensor:
        counts = torch.bincount(history[0], minlength=scores.shape[-1])[: scores.shape[-1]]
        return scores - self.penalty * (counts / history.shape[1]).to(scores.dtype)[None]


class Used:
    """Subtracts `frequency` for each time that the answer has used a token, and `presence` once (OpenAI).

    begin: how many tokens the prompt has, which do not count.
    """

    def __init__(self, frequency: float, presence: float, begin: int):
        self.frequency, self.presence, self.begin = frequency, presence, begin

    def __call__(self, history: Tensor, scores: Tensor) -> Tensor:
        counts = torch.bincount(history[0, self.begin :], minlength=scores.shape[-1])[: scores.shape[-1]]
        counts = counts.to(scores.dtype)[None]
        return scores - self.frequency * counts - self.presence * (counts > 0)


class Bias:
    """Adds a number to the scores of some tokens, {token id: number} (OpenAI's logit_bias)."""

    def __init__(self, biases: dict[int, float]):
        self.ids = torch.tensor(list(biases), dtype=torch.long)
        self.numbers = torch.tensor(list(biases.values()))

    def __call__(self, history: Tensor, scores: Tensor) -> Tensor:
        changed = scores.clone()
        changed[0, self.ids] += self.numbers.to(scores.dtype)
        return changed
