"""Losses that teach a model which of two answers is preferred, or whether one is desirable: one table.

Symbols are the papers': x a question, y_w the preferred answer, y_l the other, π the model, π_ref what it was; and

    h_w = ln π(y_w | x) - ln π_ref(y_w | x),   h_l likewise,   |y| the tokens of an answer.

A loss has the log-probabilities of a batch (`Pairs`, or `Singles` for KTO) and gives one number a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lib import files


class Pairs(NamedTuple):
    """Of each pair [rows]: log-probabilities of both answers by the model and the reference, and their tokens."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """(h_w, h_l)."""
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected


class Singles(NamedTuple):
    """Of each answer [rows]: log-probabilities by model and reference, whether it is desirable, and KTO's z₀."""

    answer: Tensor
    reference: Tensor
    desirable: Tensor
    baseline: Tensor


@dataclass(frozen=True)
class Options:
    """beta β: how far the model may go from the reference. label_smoothing: share of pairs that are labelled wrongly.

    per_token: take means over an answer's tokens instead of sums. margin γ: of SimPO, in units of its reward.
    desirable_weight, undesirable_weight: λ_D and λ_U of KTO.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    per_token: bool = False
    margin: float = 0.5
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self):
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"beta={self.beta} and label_smoothing={self.label_smoothing}; a beta above 0 and a share from 0 to "
                "below 0.5 are allowed; 0.1 and 0 are usual."
            )
        if min(self.desirable_weight, self.undesirable_weight) < 0 or self.margin < 0:
            raise ValueError(f"{self}: weights and margin are 0 or more; 1 and 0.5 are usual.")


def dpo(pairs: Pairs, options: Options) -> Tensor:
    """-ln σ(β (h_w - h_l)) (DPO, Rafailov et al., arXiv 2305.18290, equation 7).

    With label smoothing ε: -(1 - ε) ln σ(β Δ) - ε ln σ(-β Δ) (conservative DPO, Mitchell, 2023).
    """
    h_w, h_l = _scaled(*pairs.ratios, pairs, options)
    z, smoothed = options.beta * (h_w - h_l), options.label_smoothing
    return -(1 - smoothed) * logsigmoid(z) - smoothed * logsigmoid(-z)


def robust(pairs: Pairs, options: Options) -> Tensor:
    """(-(1 - ε) ln σ(β Δ) + ε ln σ(-β Δ)) / (1 - 2 ε), Δ = h_w - h_l: DPO's own loss on average, where a share ε of the
    pairs is labelled the wrong way round (robust DPO, Chowdhury et al., arXiv 2403.00409, equation 12).

    Conservative DPO (`dpo` with label smoothing) has a finite optimum instead.
    """
    h_w, h_l = _scaled(*pairs.ratios, pairs, options)
    z, wrong = options.beta * (h_w - h_l), options.label_smoothing
    return (-(1 - wrong) * logsigmoid(z) + wrong * logsigmoid(-z)) / (1 - 2 * wrong)


def ipo(pairs: Pairs, options: Options) -> Tensor:
    """(h_w - h_l - 1 / (2 β))² (IPO, Azar et al., arXiv 2310.12036, equation 17, β for its τ).

    Sums over tokens, as the paper writes it. TRL takes means (`per_token`), as the paper's authors did in their code.
    """
    h_w, h_l = _scaled(*pairs.ratios, pairs, options)
    return (h_w - h_l - 1 / (2 * options.beta)).square()


def hinge(pairs: Pairs, options: Options) -> Tensor:
    """max(0, 1 - β (h_w - h_l)) (SLiC-HF, Zhao et al., arXiv 2305.10425, on DPO's reward)."""
    h_w, h_l = _scaled(*pairs.ratios, pairs, options)
    return (1 - options.beta * (h_w - h_l)).relu()


def simpo(pairs: Pairs, options: Options) -> Tensor:
    """-ln σ(β (ln π(y_w)/|y_w| - ln π(y_l)/|y_l|) - γ), without a reference (SimPO, arXiv 2405.14734, equation 6)."""
    apart = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return -logsigmoid(options.beta * apart - options.margin)


def orpo(pairs: Pairs, options: Options) -> Tensor:
    """-ln π(y_w)/|y_w| - β ln σ(ln odds(y_w) - ln odds(y_l)), odds p / (1 - p) of the mean token's probability.

    No reference (ORPO, Hong et al., arXiv 2403.07691, equations 6 and 7, β for its λ).
    """
    w, lost = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    odds = (w - lost) - (_log1mexp(w) - _log1mexp(lost))
    return -w - options.beta * logsigmoid(odds)


def kto(singles: Singles, options: Options) -> Tensor:
    """λ (1 - σ(β (h - z₀))) of a desirable answer and λ (1 - σ(β (z₀ - h))) of an undesirable one.

    KTO, Ethayarajh et al., arXiv 2402.01306, equation 7; z₀ is an estimate of KL(π || π_ref) without a gradient.
    """
    h = singles.answer - singles.reference
    sign = torch.where(singles.desirable, 1.0, -1.0)
    weights = torch.where(singles.desirable, options.desirable_weight, options.undesirable_weight)
    return weights * (1 - torch.sigmoid(options.beta * sign * (h - singles.baseline)))


def margins(name: str, pairs: Pairs, options: Options) -> Tensor:
    """By how much the loss's own reward prefers the right answer [rows].

    β (h_w - h_l), of means over tokens where the loss takes these; without a reference β times the difference of the
    mean log-probabilities.
    """
    if by_name(name).reference:
        h_w, h_l = _scaled(*pairs.ratios, pairs, options)
    else:
        h_w, h_l = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return options.beta * (h_w - h_l)


def _scaled(h_w: Tensor, h_l: Tensor, pairs: Pairs, options: Options) -> tuple[Tensor, Tensor]:
    return (h_w / pairs.chosen_tokens, h_l / pairs.rejected_tokens) if options.per_token else (h_w, h_l)


def _log1mexp(x: Tensor) -> Tensor:
    """ln(1 - eˣ) of x < 0."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))


class Row(NamedTuple):
    """A loss, whether it needs a reference, and whether it learns from pairs or from single answers."""

    loss: Callable
    reference: bool
    pairs: bool


PREFERENCES = {
    "dpo": Row(dpo, True, True),
    "robust": Row(robust, True, True),
    "ipo": Row(ipo, True, True),
    "hinge": Row(hinge, True, True),
    "simpo": Row(simpo, False, True),
    "orpo": Row(orpo, False, True),
    "kto": Row(kto, True, False),
}


def by_name(name: str) -> Row:
    """The row `name`; ValueError with the choices for unknown names."""
    if name not in PREFERENCES:
        raise ValueError(f"preference loss {name!r} is unknown; {files.choices(name, PREFERENCES)}")
    return PREFERENCES[name]
