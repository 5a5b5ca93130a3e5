"""Losses over the vocabulary, computed from the head a chunk of positions at a time.

The logits of one window of 512 tokens take 100 MB in float32, and autograd would keep several such tensors. The
gradient of a loss over the vocabulary has a closed form, so each chunk of logits is reduced at once to the gradient by
the hidden states, and freed. The head's own gradient, where it is trained, is accumulated in float32.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from lib.models import logits
from lib.trainers import minibatch

# from logits, float32 [rows, vocabulary], and which rows these are: the sum of their losses, and its gradient by them
OfLogits = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def mean(model: nn.Module, batch: dict, of_logits: OfLogits) -> Tensor:
    """Mean loss over the predicted positions of `batch` (see `minibatch.targets`), in nats, ready for `backward`.

    of_logits: called with the logits of some rows among the predicted positions, which are numbered as `targets` are;
    it may overwrite them. With several processes the whole model is called, as its wrappers require.
    """
    states, projection = parts(model, minibatch.inputs(batch))
    states = minibatch.select(states[:, :-1], batch)
    trained = [weight for weight in projection.parameters() if weight.requires_grad]
    return _Chunked.apply(states, projection, projection.vocabulary, of_logits, *trained)


def parts(model: nn.Module, given: dict) -> tuple[Tensor, Callable]:
    """Hidden states [rows, length, size] of `model` on the batch `given`, and their projection to logits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found = model(**given, use_cache=False).logits
        return found, logits.Whole(found.shape[-1])
    run, projection = logits.split(model)
    return run(**given), projection


class _Chunked(torch.autograd.Function):
    """Mean of `of_logits` over `project(states)`; the forward pass also computes the gradient."""

    @staticmethod
    def forward(ctx, states: Tensor, project: Callable, vocabulary: int, of_logits: OfLogits, *trained: Tensor):
        count = max(1, len(states))  # a pass of padding alone has no targets
        total, gradient = torch.zeros((), device=states.device), torch.empty_like(states)
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
        for chunk in slices(len(states), vocabulary, trained):
            with torch.enable_grad():
                some = states[chunk].detach().requires_grad_()
                found = project(some)
            loss, of_found = of_logits(found.detach().float(), chunk)
            total += loss
            parts = torch.autograd.grad(found, [some, *trained], of_found.div_(count).to(found.dtype))
            gradient[chunk] = parts[0]
            for whole, part in zip(sums, parts[1:]):
                whole += part
        ctx.save_for_backward(gradient, *sums)
        ctx.types = [weight.dtype for weight in trained]
        return total / count

    @staticmethod
    def backward(ctx, outer: Tensor):
        gradient, *sums = ctx.saved_tensors
        weights = [(whole * outer).to(dtype) for whole, dtype in zip(sums, ctx.types)]
        return gradient * outer.to(gradient.dtype), None, None, None, *weights


def slices(count: int, vocabulary: int, trained: Iterable[Tensor]) -> Iterator[slice]:
    """Slices over `count` rows; where each costs a pass over the head's gradient, up to eight times longer.

    trained: the head's trained weights. Longer slices pay only where their gradient is larger than the logits of a
    slice: a small head's chunks stay in the processor's cache.
    """
    slices = list(logits.chunks(count, vocabulary))
    size = sum(4 * weight.numel() for weight in trained)
    step = max(1, min(8, size // logits.CHUNK_BYTES))
    for group in range(0, len(slices), step):
        yield slice(slices[group].start, slices[min(group + step, len(slices)) - 1].stop)
