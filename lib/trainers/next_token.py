"""Next-token loss: the mean cross-entropy of the text's own tokens."""

import torch
from torch import Tensor, nn

from lib.trainers import chunked, minibatch


def loss(model: nn.Module, batch: dict) -> Tensor:
    """-1/n Σ ln q(x_t | x_<t): mean cross-entropy in nats over the tokens of batch["labels"], or of all "input_ids".

    The logarithm of the perplexity on these windows. Its gradient by the logits is q - onehot(x_t).
    """
    targets = minibatch.targets(batch)

    def of_logits(found: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        q, here = found.log_softmax(-1), targets[rows, None]
        surprise = -q.gather(-1, here).sum()
        return surprise, q.exp_().scatter_add_(-1, here, torch.full(here.shape, -1.0, device=q.device))

    return chunked.mean(model, batch, of_logits)
