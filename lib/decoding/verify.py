"""One verification step of lossless decoding: which drafted tokens are accepted, and which token follows.

A drafter proposes x_1 ... x_γ; the model reads them in one pass and has its own distributions p_1 ... p_{γ+1}. The
accepted tokens are distributed exactly as if drawn one by one from p, whatever was proposed.

Source: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192,
section 2.3 and Algorithm 1. A drafter without probabilities (prompt lookup) is the special case q(x) = 1.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lib.decoding.sampling import Sampling, not_finite


class Draft(NamedTuple):
    """Proposed tokens: `token_ids` LongTensor [γ], γ from 0.

    `probabilities`: the distributions that they were drawn from, float32 [γ, vocabulary]; None where they were not
    drawn but chosen.
    """

    token_ids: Tensor
    probabilities: Tensor | None = None


NOTHING = Draft(torch.empty(0, dtype=torch.long))


class Drafter(ABC):
    """The interface of drafters; only `draft` is required."""

    def begin(self, token_ids: Tensor) -> None:
        """Called for a new answer; its prompt is `token_ids` (LongTensor [length], length from 0) plus one token."""
        return  # most drafters keep no state between answers

    def unread(self, token_ids: Tensor) -> int:
        """How many of `token_ids` [length] must be read before a draft, without those of the last draft's step."""
        return 0

    @abstractmethod
    def draft(self, token_ids: Tensor, at_most: int | None = None) -> Draft:
        """Propose at most `at_most` tokens to follow `token_ids` (LongTensor [length], prompt included)."""


def verify(logits: Tensor, draft: Draft, history: Tensor, sampling: Sampling) -> list[int]:
    """The tokens of this step: the accepted ones of the draft and one more, so 1 to γ + 1.

    logits: the model's, float32 [γ + 1, vocabulary], after the last known token and after each drafted one.
    history: LongTensor [length + γ], the tokens so far with the draft behind them (repetition penalties read it).
    Raises ValueError for a draft that does not fit the model's vocabulary, and for logits that are not finite.
    """
    _check(logits, draft)
    if sampling.greedy:
        return _greedy(logits, draft.token_ids, history, sampling)
    start = len(history) - len(draft.token_ids)
    for i, guess in enumerate(draft.token_ids.tolist()):
        p = sampling.probabilities(logits[i], history[: start + i])
        q = None if draft.probabilities is None else draft.probabilities[i]
        # "we keep it if q(x) ≤ p(x), and in case q(x) > p(x) we reject the sample with probability 1 - p(x) / q(x)"
        if sampling.accept(float(p[guess]) / (1.0 if q is None else float(q[guess]))):
            continue
        return [*draft.token_ids[:i].tolist(), sampling.draw(_adjusted(p, q, guess))]
    p = sampling.probabilities(logits[-1], history)
    return [*draft.token_ids.tolist(), sampling.draw(p)]


def _adjusted(p: Tensor, q: Tensor | None, guess: int) -> Tensor:
    """p'(x) = norm(max(0, p(x) - q(x))), from which the token after a rejection is drawn."""
    if q is None:
        q = torch.zeros_like(p)
        q[guess] = 1.0
    rest = (p - q).clamp(min=0)
    # if p and q differ only by rounding, nothing remains: p itself is as good
    return rest / rest.sum() if rest.sum() > 0 else p


def _greedy(logits: Tensor, guesses: Tensor, history: Tensor, sampling: Sampling) -> list[int]:
    """Drafted tokens as long as each is the likeliest, then the likeliest after them."""
    if sampling.penalised:
        start = len(history) - len(guesses)
        best = torch.tensor([sampling.best(row, history[: start + i]) for i, row in enumerate(logits)])
    elif logits.max(-1).values.isnan().any():
        raise not_finite()
    else:
        best = logits.argmax(-1)
    agree = (best[: len(guesses)].cpu() == guesses).int().cumprod(0).sum()
    return best[: int(agree) + 1].tolist()


def _check(logits: Tensor, draft: Draft) -> None:
    count, vocabulary = logits.shape
    if count != len(draft.token_ids) + 1:
        raise ValueError(
            f"{count} rows of logits for a draft of {len(draft.token_ids)} tokens; one more than drafted is allowed; "
            "read the last known token and the draft in one pass."
        )
    if draft.probabilities is not None and draft.probabilities.shape != (count - 1, vocabulary):
        raise ValueError(
            f"the draft has probabilities of shape {list(draft.probabilities.shape)}, the model a vocabulary of "
            f"{vocabulary}; both must have one vocabulary; draft with a model of the same tokenizer."
        )
    if len(draft.token_ids) and not 0 <= int(draft.token_ids.min()) <= int(draft.token_ids.max()) < vocabulary:
        raise ValueError(
            f"the draft holds token ids up to {int(draft.token_ids.max())}, the model knows 0 to {vocabulary - 1}; "
            "draft with the same tokenizer."
        )
