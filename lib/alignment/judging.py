"""What preferences made of a model: its likelihoods of pairs, its own answers, what it forgot, and who wins.

Every number comes with what it needs to be compared: one value a pair or a question for paired tests, or an interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lib import progress
from lib.alignment import on_policy
from lib.decoding import ends
from lib.decoding.requests import Request
from lib.decoding.sampling import Sampling
from lib.decoding.settings import PLAIN
from lib.evaluation.local import Local
from lib.metrics import intervals
from lib.metrics.intervals import Interval
from lib.metrics.score import Score, bootstrap
from lib.models import logits
from lib.sources.conversations import Conversation
from lib.trainers import minibatch, reward_model, token_logp
from lib.trainers.preference_rows import PreferenceRows


@dataclass(frozen=True)
class Likelihoods:
    """Of each pair [rows, 2], the preferred answer first: log-probabilities, and the tokens that these are of."""

    logp: Tensor
    tokens: Tensor

    @property
    def prefers(self) -> Tensor:
        """Whether the preferred answer is likelier a token [rows], 1 or 0, 1/2 where both are the same."""
        return _above(self.logp / self.tokens)

    def against(self, reference: Tensor) -> Tensor:
        """As `prefers`, by how much likelier each answer became: DPO's reward; reference: [rows, 2]."""
        return _above(self.logp - reference)


def _above(values: Tensor) -> Tensor:
    apart = values[:, 0] - values[:, 1]
    return torch.where(apart == 0, 0.5, (apart > 0).double())


def likelihoods(model: nn.Module, rows: PreferenceRows) -> Likelihoods:
    """The log-probabilities of both answers of each pair by `model`."""
    device, logp, tokens = logits.device(model), [], []
    with logits.evaluating(model):
        for row in progress.bar(rows, desc="pairs", unit="pair"):
            batch = {name: each.to(device) for name, each in minibatch.collate(list(row["sequences"])).items()}
            found = token_logp.of_rows(model, batch)
            logp.append(found[0].double().cpu())
            tokens.append(found[1].cpu())
    return Likelihoods(torch.stack(logp), torch.stack(tokens))


def reference_of(rows: PreferenceRows) -> Tensor:
    """The reference's log-probabilities [rows, 2]; ValueError for rows without them."""
    if any(row["reference"] is None for row in rows):
        raise ValueError("the rows have no reference; rewards are taken against one; call `rows.towards(reference)`.")
    return torch.stack([row["reference"] for row in rows]).double()


def bits_per_byte(found: Likelihoods, rows: PreferenceRows) -> Score:
    """Bits that the preferred answers cost a byte of their text, and the end of each, lower is better.

    Over all answers that were not cut; the error is a bootstrap over these. ValueError where all were.
    """
    sizes = np.array([row["bytes"][0] for row in rows], np.float64)
    if not (kept := sizes > 0).any():
        raise ValueError(f"all of {len(rows)} preferred answers were cut; whole ones are needed; allow more tokens.")
    pairs = np.stack([-found.logp[:, 0].numpy() / math.log(2), sizes], 1)[kept]

    def ratio(samples, axis=0):
        sums = samples.sum(axis)
        return sums[..., 0] / sums[..., 1]

    return Score(float(ratio(pairs)), bootstrap(pairs, ratio), int(kept.sum()), "bits/byte", False)


def accuracy(right: Tensor) -> Interval:
    """The share of pairs in which the right answer is preferred, with Wilson's interval (Student's where some tie)."""
    return intervals.mean(right.numpy())


@dataclass(frozen=True)
class Answers:
    """A model's own answers, drawn at temperature 1: a text each, its tokens, whether it ended by itself, and by how
    many nats the model finds it likelier than the reference does."""

    texts: tuple[str, ...]
    tokens: np.ndarray
    ended: np.ndarray
    gone: np.ndarray

    @property
    def kl(self) -> Interval:
        """KL(model || reference), nats an answer: the mean of ln π / π_ref over what the model itself draws."""
        return intervals.mean(self.gone)

    @property
    def over_length(self) -> Interval:
        """The share of answers that had not ended when they were cut."""
        return intervals.mean(1.0 - self.ended)


def answers(
    model: nn.Module, reference: nn.Module, asked: on_policy.Questions, tokenizer, *, new_tokens: int, seed: int = 0
) -> Answers:
    """One answer of `model` to each question, at most `new_tokens` tokens; answer i is drawn with `seed` + i.

    Without the checkpoint's own generation settings: what is drawn is the model's distribution itself.
    """
    requests = [
        Request(row["input_ids"].tolist(), new_tokens, sampling=Sampling(1.0, seed=seed + place), own=PLAIN,
                ends=ends.of_model(model))
        for place, row in enumerate(asked)
    ]  # fmt: skip
    Local(model, tokenizer, plain=True).answer(requests)
    written = [each.answer.token_ids for each in requests]
    rows = [on_policy.row(each.prompt, answer) for each, answer in zip(requests, written)]
    gone = []
    with logits.evaluating(model, reference):
        for row in rows:
            batch = minibatch.collate([row])
            both = [token_logp.of_rows(one, {name: each.to(logits.device(one)) for name, each in batch.items()})[0]
                    for one in (model, reference)]  # fmt: skip
            gone.append(float(both[0]) - float(both[1]))
    ended = np.array([each.answer.reason == "eos" for each in requests], np.float64)
    texts = tuple(tokenizer.decode(each, skip_special_tokens=True) for each in written)
    return Answers(texts, np.array([len(each) for each in written]), ended, np.array(gone))


def finds(judge: nn.Module, tokenizer, pairs: Sequence[Conversation], *, length: int) -> Tensor:
    """Of each pair [pairs] whether a reward model finds the preferred answer better; its own error is 1 less these."""
    chosen, rejected = (
        reward_model.score(judge, [reward_model.answered(each, getattr(each, side)) for each in pairs], tokenizer,
                           length=length)
        for side in ("chosen", "rejected")
    )  # fmt: skip
    return _above(torch.stack([chosen, rejected], 1))


@dataclass(frozen=True)
class WinRate:
    """How often one model's answers win over another's, as a judge with errors of its own sees it, and as it may be.

    observed: by the judge; judge: its accuracy on pairs that people ordered. corrected: the share that would be seen
    without its errors, None where the judge can't be told from a coin.
    """

    observed: Interval
    judge: Interval
    corrected: Interval | None

    def __str__(self):
        said = f"{self.observed} by a judge that is right in {self.judge}"
        return f"{said}; corrected: {self.corrected or 'the judge is no better than a coin, so nothing is known'}"


def win_rate(
    ours: Sequence[float], theirs: Sequence[float], judge: Interval, groups: Sequence | None = None
) -> WinRate:
    """Compare the rewards of two models' answers to the same questions [answers]; a tie counts as half a win.

    groups: the question of each answer, where several seeds answered each.

    A judge that is right with probability a, whoever is better, sees the share s = a p + (1 - a)(1 - p) of wins where
    the true one is p = (s + a - 1) / (2 a - 1) (Rogan and Gladen 1978, doi:10.1093/oxfordjournals.aje.a112510); the
    interval has both errors, to first order, and is cut at 0 and 1.
    """
    apart = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    observed = intervals.mean(np.where(apart == 0, 0.5, apart > 0), groups)
    if not judge.low > 0.5:
        return WinRate(observed, judge, None)
    slope = 2 * judge.value - 1
    share = (observed.value + judge.value - 1) / slope
    error = math.hypot(observed.stderr / slope, (1 - 2 * observed.value) / slope**2 * judge.stderr)
    low, high = (share + sign * intervals.NORMAL * error for sign in (-1, 1))
    kept = [min(max(each, 0.0), 1.0) for each in (share, low, high)]
    return WinRate(observed, judge, Interval(kept[0], error, kept[1], kept[2], observed.n))
