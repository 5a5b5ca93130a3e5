"""Divergences from a teacher's next-token distribution p to a model's q, with their gradients by the model's logits z.

Each is called with logits [rows, outcomes] of both (up to a constant in each row) and returns the sum over the rows in
nats, and its gradient by z_q. With q = softmax z, a loss L(q) has ∂L/∂z_i = q_i (∂L/∂q_i - Σ_j q_j ∂L/∂q_j).
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lib import files


@dataclass(frozen=True)
class ForwardKL:
    """KL(p || q) = Σ p ln (p / q): where p is large, q must not be small (Hinton et al., arXiv 1503.02531)."""

    def __call__(self, z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is q - p. `z_p` is overwritten."""
        p, q = z_p.softmax(-1), z_q.softmax(-1)
        # Σ p (ln p - ln q) = Σ p (z_p - z_q) - (ln Σ exp z_p - ln Σ exp z_q): spares the logarithms of all tokens
        apart = _normalizer(z_p, p) - _normalizer(z_q, q)
        loss = z_p.sub_(z_q).mul_(p).sum() - apart.sum()
        return loss, q.sub_(p)


@dataclass(frozen=True)
class ReverseKL:
    """KL(q || p) = Σ q ln (q / p): q must not be large where p is small (MiniLLM, Gu et al., arXiv 2306.08543)."""

    def __call__(self, z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is q (ln (q / p) - KL(q || p))."""
        log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
        q, apart = log_q.exp(), log_q - log_p
        each = (q * apart).sum(-1, keepdim=True)
        return each.sum(), q * (apart - each)


@dataclass(frozen=True)
class ConfidenceAware:
    """CAKLD: γ KL(q || p) + (1 - γ) KL(p || q) (BitDistiller, Du et al., arXiv 2402.10631, equation 6).

    coefficient γ: how sure the teacher is of the training text, from 0 to 1 (`confidence.measure`). Where it is sure,
    the student seeks the teacher's mode; where many tokens may follow, it covers them.
    """

    coefficient: float

    def __post_init__(self):
        _check_share("coefficient", self.coefficient)

    def __call__(self, z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is the same mixture of both gradients."""
        backward, by_backward = ReverseKL()(z_p, z_q)
        forward, by_forward = ForwardKL()(z_p, z_q)
        gamma = self.coefficient
        return backward * gamma + forward * (1 - gamma), by_backward.mul_(gamma).add_(by_forward, alpha=1 - gamma)


@dataclass(frozen=True)
class JensenShannon:
    """β KL(p || m) + (1 - β) KL(q || m) with m = β p + (1 - β) q (GKD, Agarwal et al., arXiv 2306.13649, equation 1).

    share β: above 0 and below 1. It stays below ln 2 however far p and q are apart.
    """

    share: float = 0.5

    def __post_init__(self):
        _check_share("share", self.share)
        if self.share in (0, 1):
            raise ValueError(f"share={self.share} makes both terms zero; numbers between 0 and 1 are allowed; try 0.5.")

    def __call__(self, z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is (1 - β) q (ln (q / m) - KL(q || m))."""
        log_p, log_q, beta = z_p.log_softmax(-1), z_q.log_softmax(-1), self.share
        p, q = log_p.exp(), log_q.exp()
        log_m = torch.lerp(q, p, beta).log()
        of_p = torch.where(p > 0, p * (log_p - log_m), 0).sum()
        apart = torch.where(q > 0, log_q - log_m, 0)
        of_q = (q * apart).sum(-1, keepdim=True)
        return beta * of_p + (1 - beta) * of_q.sum(), (1 - beta) * q * (apart - of_q)


FORWARD_KL = ForwardKL()
DIVERGENCES = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "cakld": ConfidenceAware,
    "jensen_shannon": JensenShannon,
}


def by_name(name: str, **options):
    """The divergence `name` with its `options`; ValueError with the choices for unknown names."""
    if name not in DIVERGENCES:
        raise ValueError(f"divergence {name!r} is unknown; {files.choices(name, DIVERGENCES)}")
    return DIVERGENCES[name](**options)


def identity(divergence) -> dict:
    """The name of a divergence and its options, for the settings that determine a training's result."""
    named = {kind: name for name, kind in DIVERGENCES.items()}
    return {"divergence": named.get(type(divergence), type(divergence).__qualname__), **asdict(divergence)}


def _normalizer(z: Tensor, softmax: Tensor) -> Tensor:
    """ln Σ exp z of each row, computed from its likeliest token: softmax = exp z / Σ exp z."""
    return z.amax(-1) - softmax.amax(-1).log()


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}; it is a share: numbers from 0 to 1 are allowed; change it.")
