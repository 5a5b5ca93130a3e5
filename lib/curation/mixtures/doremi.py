"""DoReMi: weights under which a small model loses least against a reference (Xie et al., arXiv 2305.10429).

    min_θ max_α  Σ_i α_i · [1 / Σ|x|  Σ ℓ_θ(x) - ℓ_ref(x)]                                                    (1)

Step 1 trains a reference model on a mixture (uniform here, or any); step 2 a proxy model and the weights together, by
Algorithm 1; step 3 trains the large model with the mean of the weights. Domains in which the proxy can still learn what
the reference knows gain weight. Their weights were found to depend on tokenizer and size, and to end one-hot where
rounds are many: look at the path and at several seeds.
"""

import numpy as np
import torch
from torch import Tensor, nn

from lib.curation.mixtures import proxies
from lib.curation.mixtures.domains import Domains
from lib.curation.mixtures.proxies import Mixture

RATE, SMOOTHING = 1.0, 1e-3  # η and c of Algorithm 1


class GroupDistributionallyRobust:
    """The loss of step 2, which moves the weights each time it is asked."""

    def __init__(self, reference: nn.Module, domains: int, *, rate: float = RATE, smoothing: float = SMOOTHING):
        self.reference, self.rate, self.smoothing = reference.eval(), rate, smoothing
        self.alpha, self.path = torch.full((domains,), 1 / domains), []

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        """L(θ, α_t) = Σ_i α_t[i] · mean loss of domain i."""
        count = len(self.alpha)
        own = proxies.token_losses(model, batch)
        with torch.no_grad():
            excess = (own - proxies.token_losses(self.reference, batch)).clamp(min=0)  # max{ℓ_θ - ℓ_ref, 0}, a token
            lambdas = proxies.of_domains(excess, batch, count)  # λ_t[i]
            raised = self.alpha * torch.exp(self.rate * lambdas)  # α'_t
            self.alpha = (1 - self.smoothing) * raised / raised.sum() + self.smoothing / count
            self.path.append(self.alpha.numpy().copy())
        return (self.alpha * proxies.of_domains(own, batch, count)).sum()


def find(
    domains: Domains,
    *,
    steps: int,
    seed: int = 0,
    reference: nn.Module | None = None,
    rate: float = RATE,
    smoothing: float = SMOOTHING,
    batch: int = proxies.BATCH,
    **options,
) -> Mixture:
    """The weights of one round. reference: None for one trained on the uniform mixture. options: `proxies.train`'s.

    Raises ValueError for a batch with fewer rows than domains, which Algorithm 1 samples uniformly.
    """
    count = len(domains.rows)
    if batch < count:
        raise ValueError(f"batch={batch} of {count} domains; a row of each or more is needed; give {count} or more.")
    if reference is None:
        reference = proxies.train(domains, domains.uniform, steps=steps, seed=seed, batch=batch, **options)
    loss = GroupDistributionallyRobust(reference, count, rate=rate, smoothing=smoothing)
    proxies.train(domains, domains.uniform, steps=steps, seed=seed, batch=batch, loss=loss, **options)
    path = np.array(loss.path)
    return Mixture(path.mean(0) / path.mean(0).sum(), path)
