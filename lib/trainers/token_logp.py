"""Log-probabilities of a batch's own tokens, with gradients, computed from the head a chunk of positions at a time.

What `chunked` is to losses that are sums over positions, this is to those of whole sequences: their gradient by each
logit is known only when all log-probabilities are, so the chunks of logits are made again in the backward pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.trainers import chunked, minibatch
from lib.trainers.minibatch import IGNORED


class Found(NamedTuple):
    """Of each row [rows]: Σ_t ln q(y_t | x, y_<t) over its n targets y, n, and Σ_t H(q(· | x, y_<t)) in nats.

    The entropies have no gradient.
    """

    logp: Tensor
    tokens: Tensor
    entropy: Tensor


def of_rows(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """(Σ_t ln q(y_t | x, y_<t), how many tokens these are) of each row of `batch`, both [rows]; y have a label."""
    return _found(model, batch, False)[:2]


def with_entropy(model: nn.Module, batch: dict) -> Found:
    """As `of_rows`, and how undecided the model was at these tokens."""
    return _found(model, batch, True)


def _found(model: nn.Module, batch: dict, entropy: bool) -> Found:
    states, projection = chunked.parts(model, minibatch.inputs(batch))
    labels = batch.get("labels", batch["input_ids"])[:, 1:]
    learned = labels != IGNORED
    trained = [weight for weight in projection.parameters() if weight.requires_grad]
    given = states[:, :-1][learned], labels[learned], projection, projection.vocabulary, entropy
    logp, undecided = (
        torch.zeros(labels.shape, dtype=each.dtype, device=each.device).masked_scatter(learned, each).sum(-1)
        for each in _LogP.apply(*given, *trained)
    )
    return Found(logp, learned.sum(-1), undecided)


class _LogP(torch.autograd.Function):
    """ln q of the target of each state [n, hidden], and the entropy of q where it is asked for, else 0.

    The gradient of ln q by the logits is onehot - q.
    """

    @staticmethod
    def forward(
        ctx, states: Tensor, targets: Tensor, project: Callable, vocabulary: int, entropy: bool, *trained: Tensor
    ):
        ctx.save_for_backward(states, targets, *trained)
        ctx.project, ctx.vocabulary = project, vocabulary
        found, undecided = (torch.zeros(len(states), device=states.device) for _ in range(2))
        for chunk in chunked.slices(len(states), vocabulary, trained):
            logp = project(states[chunk]).float().log_softmax(-1)
            found[chunk] = logp.gather(-1, targets[chunk, None])[:, 0]
            if entropy:
                undecided[chunk] = -logp.exp().mul_(logp).nan_to_num_(0.0).sum(-1)  # 0 ln 0 is 0
        ctx.mark_non_differentiable(undecided)
        return found, undecided

    @staticmethod
    def backward(ctx, outer: Tensor, _: Tensor):
        states, targets, *trained = ctx.saved_tensors
        gradient = torch.zeros_like(states)
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
        for chunk in chunked.slices(len(states), ctx.vocabulary, trained):
            with torch.enable_grad():
                some = states[chunk].detach().requires_grad_()
                found = ctx.project(some)
            of_found = found.detach().float().softmax(-1).neg_()
            of_found.scatter_add_(-1, targets[chunk, None], torch.ones_like(of_found[:, :1]))
            of_found = of_found.mul_(outer[chunk, None]).to(found.dtype)
            parts = torch.autograd.grad(found, [some, *trained], of_found)
            gradient[chunk] = parts[0]
            for whole, part in zip(sums, parts[1:]):
                whole += part
        weights = [whole.to(weight.dtype) for whole, weight in zip(sums, trained)]
        return gradient, None, None, None, None, *weights
