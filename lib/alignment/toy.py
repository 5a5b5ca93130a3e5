"""A policy over a few answers to one question, a logit each, on which preferences can be learned to the end.

Where answer i beats answer j with probability p_ij = σ(r_i - r_j), the optima are known: DPO's is
π(i) = π_ref(i) exp(r_i / β) / Z (arXiv 2305.18290, equation 4), and IPO's has ln π(i) / π_ref(i) equal to the mean over
j of (2 p_ij - 1) / (2 β), up to a constant: all its margins are at most 1 / (2 β) (arXiv 2310.12036, section 5).
"""

import math

import torch
from torch import Tensor

from lib.trainers import preferences
from lib.trainers.preferences import Options, Pairs, Singles


def bradley_terry(rewards: Tensor) -> Tensor:
    """p_ij [answers, answers], the probability that answer i is preferred to j."""
    return torch.sigmoid(rewards[:, None] - rewards[None])


def certain(count: int) -> Tensor:
    """p_ij where the answer with the lower number is always preferred."""
    return torch.ones(count, count, dtype=torch.float64).triu() - 0.5 * torch.eye(count, dtype=torch.float64)


def loss(name: str, logp: Tensor, reference: Tensor, wins: Tensor, options: Options) -> Tensor:
    """The expected loss over all pairs of answers, each as often; logp, reference: log-probabilities [answers].

    KTO sees each answer as desirable as often as it wins; its baseline is the KL divergence itself.
    """
    count, row = len(logp), preferences.by_name(name)
    one, other = (~torch.eye(count, dtype=torch.bool)).nonzero().T
    if row.pairs:
        tokens = torch.ones(len(one), dtype=logp.dtype)
        given = Pairs(logp[one], logp[other], reference[one], reference[other], tokens, tokens)
        return (2 * wins[one, other] * row.loss(given, options)).mean()
    share = (wins.sum(1) - 0.5) / (count - 1)
    distance = (logp.exp() * (logp - reference)).sum().detach()
    kinds = [
        row.loss(Singles(logp, reference, torch.full((count,), good), distance), options) for good in (True, False)
    ]
    return (share * kinds[0] + (1 - share) * kinds[1]).mean()


def learn(
    name: str, reference: Tensor, wins: Tensor, options: Options, *, steps: int = 400, rate: float = 0.5
) -> Tensor:
    """Log-probabilities [steps + 1, answers], float64, of a policy that begins as `reference` [answers].

    Plain gradient descent on the logits, at a rate divided by β² or so, in which a loss's curvature grows.
    """
    reference = reference.double().log_softmax(-1)
    logits = reference.clone().requires_grad_()
    found = [reference]
    for _ in range(steps):
        value = loss(name, logits.log_softmax(-1), reference, wins.double(), options)
        (gradient,) = torch.autograd.grad(value, logits)
        with torch.no_grad():
            logits -= rate * gradient
        found.append(logits.detach().log_softmax(-1))
    return torch.stack(found)


def optimum(name: str, reference: Tensor, wins: Tensor, beta: float) -> Tensor | None:
    """The log-probabilities [answers] that DPO or IPO ends with; None where there is no end (DPO, certain wins)."""
    reference, wins = reference.double().log_softmax(-1), wins.double()
    if name == "ipo":
        return (reference + ((2 * wins - 1) / (2 * beta)).mean(1)).log_softmax(-1)
    if name != "dpo":
        raise ValueError(f"name={name!r}; the optimum is known of dpo and ipo; train to see that of others.")
    odds = torch.logit(wins)  # r_i - r_j
    if not odds.isfinite().all():
        return None
    return (reference + odds.mean(1) / beta).log_softmax(-1)


def divergence(found: Tensor) -> Tensor:
    """KL(π || π_ref) in nats at each step of `learn`."""
    return (found.exp() * (found - found[0])).sum(-1)


def widest(beta: float) -> float:
    """IPO's margin h_w - h_l between two answers of which one always wins: 1 / (2 β)."""
    return 1 / (2 * beta) if beta > 0 else math.inf
