"""DoGE: weights by how much learning one domain helps all of them (Fan, Pagliardini, Jaggi, arXiv 2310.15393).

Algorithm 1. At each step rows of every domain give its gradient ∇l_j. Generalization estimation:

    W_j = <∇l_j(θ), Σ_i ∇l_i(θ)>,

how fast all losses fall along the gradient of domain j. Then, by mirror descent with the entropy as its potential,

    α ← α ⊙ exp(η W / μ) / Σ,        θ ← θ - η Σ_j α_j ∇l_j(θ).

What is used is the mean of α over the training. A gradient for each domain costs as many backward passes; η is that of
AdamW's peak, held constant in the weights' step.
"""

import numpy as np
import torch
from torch import Tensor, nn

from lib.curation.mixtures import proxies
from lib.curation.mixtures.domains import Domains
from lib.curation.mixtures.proxies import Mixture

MU = 0.05


class GeneralizationEstimation:
    """The loss of a training, which moves the weights each time it is asked."""

    def __init__(self, domains: int, *, rate: float, mu: float = MU):
        self.step = rate / mu
        self.alpha, self.path = torch.full((domains,), 1 / domains), []

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        """Σ_j α_j l_j, with the weights of after this step's estimation."""
        losses = proxies.of_domains(proxies.token_losses(model, batch), batch, len(self.alpha))
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = []
        for each in losses:
            parts = torch.autograd.grad(each, trained, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        gradients = torch.stack(gradients)
        gain = gradients @ gradients.sum(0)  # W
        logs = self.alpha.log() + self.step * gain
        self.alpha = torch.softmax(logs, 0)
        self.path.append(self.alpha.numpy().copy())
        return (self.alpha * losses).sum()


def find(
    domains: Domains,
    *,
    steps: int,
    seed: int = 0,
    mu: float = MU,
    learning_rate: float = proxies.LEARNING_RATE,
    batch: int = proxies.BATCH,
    **options,
) -> Mixture:
    """The weights of a training. options: `proxies.train`'s. ValueError for fewer rows in a batch than domains."""
    count = len(domains.rows)
    if batch < count:
        raise ValueError(f"batch={batch} of {count} domains; a row of each or more is needed; give {count} or more.")
    loss = GeneralizationEstimation(count, rate=learning_rate, mu=mu)
    given = {"steps": steps, "seed": seed, "batch": batch, "learning_rate": learning_rate} | options
    proxies.train(domains, domains.uniform, loss=loss, **given)
    path = np.array(loss.path)
    return Mixture(path.mean(0) / path.mean(0).sum(), path)
