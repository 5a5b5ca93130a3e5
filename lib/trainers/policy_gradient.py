"""Policy gradients from rewards of whole answers: leave-one-out baselines and the clipped loss (RLOO).

Source: Ahmadian et al., "Back to Basics", arXiv 2402.14740; the clipped ratio is PPO's (Schulman et al., arXiv
1707.06347, equation 7), of whole answers. With one update an answer the ratio is 1, and the gradient is REINFORCE's.
With two samples the estimate has exactly the gradient's expectation; divided by the group's standard deviation, as in
GRPO, it has another direction.
"""

import torch
from torch import Tensor

CLIP = 0.2


def advantages(rewards: Tensor, samples: int) -> Tensor:
    """Each reward less the mean of the others' of its question; rewards [questions * samples], a question's together.

    Raises ValueError for fewer than two samples, which have no others, and for rewards that are not finite.
    """
    if samples < 2 or len(rewards) % samples:
        raise ValueError(
            f"samples={samples} of {len(rewards)} rewards; a baseline is the mean of the other answers to the same "
            "question, so 2 or more are allowed, as many of each question; draw more."
        )
    if not rewards.isfinite().all():
        place = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(
            f"reward {place} is {rewards[place].item()}; finite ones are needed; mend the reward function."
        )
    groups = rewards.view(-1, samples)
    return (groups - (groups.sum(-1, keepdim=True) - groups) / (samples - 1)).view(-1)


def rloo(logp: Tensor, before: Tensor, advantage: Tensor, clip: float = CLIP) -> Tensor:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) of each answer, ρ = π(y | x) / π_before(y | x), of the model that drew it.

    logp, before: log-probabilities of the answers [rows]; advantage: [rows], without a gradient.
    """
    ratio = (logp - before).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
