"""Log-probabilities of a batch's own tokens, with gradients, computed from the head a chunk of positions at a time.

What `chunked` is to losses that are sums over positions, this is to those of whole sequences: their gradient by each
logit is known only when all log-probabilities are, so the chunks of logits are made again in the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.trainers import chunked, minibatch
from lib.trainers.minibatch import IGNORED


def of_rows(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """(Σ_t ln q(y_t | x, y_<t), how many tokens these are) of each row of `batch`, both [rows]; y have a label."""
    states, projection = chunked.parts(model, minibatch.inputs(batch))
    labels = batch.get("labels", batch["input_ids"])[:, 1:]
    learned = labels != IGNORED
    trained = [weight for weight in projection.parameters() if weight.requires_grad]
    found = _LogP.apply(states[:, :-1][learned], labels[learned], projection, projection.vocabulary, *trained)
    spread = torch.zeros(labels.shape, dtype=found.dtype, device=found.device).masked_scatter(learned, found)
    return spread.sum(-1), learned.sum(-1)


class _LogP(torch.autograd.Function):
    """ln q of the target of each state [n, hidden]; the gradient by the logits is onehot - q."""

    @staticmethod
    def forward(ctx, states: Tensor, targets: Tensor, project: Callable, vocabulary: int, *trained: Tensor):
        ctx.save_for_backward(states, targets, *trained)
        ctx.project, ctx.vocabulary = project, vocabulary
        found = torch.empty(len(states), device=states.device)
        for chunk in chunked.slices(len(states), vocabulary, trained):
            logp = project(states[chunk]).float().log_softmax(-1)
            found[chunk] = logp.gather(-1, targets[chunk, None])[:, 0]
        return found

    @staticmethod
    def backward(ctx, outer: Tensor):
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
        return gradient, None, None, None, *weights
