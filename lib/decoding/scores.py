"""Log-probabilities of an answer's tokens, of its prompt's tokens, and of the likeliest tokens at each place.

They are the model's own: before temperature, penalties, and whatever else changes which token follows. Each row of
logits is computed by itself, so that the bits of a log-probability depend on no other request. Needs no torch.
"""

from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """A token's log-probability (natural), and the likeliest tokens in its place, [(token id, log-probability)].

    The likeliest come in falling order, equal ones by token id.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Scores:
    """What one request wants to know of its tokens: `top` likeliest ones each; `prompt`: those of its prompt too.

    `prompt` has the places of the prompt's tokens from the second on, `answer` those of the answer's tokens. The loop
    may have seen more tokens than the answer keeps; the first `len(answer.token_ids)` are the answer's.
    """

    def __init__(self, *, top: int = 0, prompt: bool = False):
        self.top, self.wants_prompt = top, prompt
        self.prompt: list[Place] = []
        self.answer: list[Place] = []

    def read(self, rows, tokens) -> None:
        """Take logits [k, vocabulary] of the prompt, and the `tokens` [k] that follow them there."""
        self.prompt += [place(row, token, self.top) for row, token in zip(rows, tokens)]

    def chosen(self, rows, tokens) -> None:
        """Take logits [k or more, vocabulary] of a step, and the `tokens` [k] that were chosen from them."""
        self.answer += [place(row, token, self.top) for row, token in zip(rows, tokens)]


def place(row, token: int, top: int = 0) -> Place:
    """The log-probability of `token` from a row of logits [vocabulary], numpy or torch, and the `top` likeliest."""
    row = _array(row)
    highest = row.max()
    total = float(highest) + float(np.log(np.exp(row - highest).sum(dtype=np.float64)))
    if not top:
        return Place(float(row[token]) - total)
    best = np.argpartition(row, -top)[-top:] if top < len(row) else np.arange(len(row))
    least = row[best].min()
    best = np.flatnonzero(row >= least)  # equals at the end too: which of them come is decided by their ids
    best = best[np.lexsort((best, -row[best]))][:top]
    return Place(float(row[token]) - total, tuple((int(each), float(row[each]) - total) for each in best))


def _array(row) -> np.ndarray:
    return np.asarray(row.float().cpu() if hasattr(row, "cpu") else row, np.float32)
