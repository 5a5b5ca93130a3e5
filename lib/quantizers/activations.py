"""Activation memory of training through the whole model: keep activations, or recompute them block by block.

A method that trains one block at a time holds the activations of that block. One that trains through all blocks at once
needs those of all of them in its backward pass. Where they don't fit, each block keeps only its inputs and runs again
when the backward pass reaches it (activation checkpointing: Chen et al., "Training Deep Nets with Sublinear Memory
Cost", arXiv 1604.06174): the same numbers, for about a third more time.
"""

import contextlib
import functools
from collections.abc import Iterator

import psutil
from torch import nn
from torch.utils.checkpoint import checkpoint

from lib.models import blocks

KEPT = 10  # tensors as wide as a block's inputs that autograd keeps of a block, without its MLP
WIDE = 4  # and as wide as its widest layer: gate, its activation, up, their product
SHARE = 0.5  # of the free memory that kept activations may take: the estimate is a rough one


def kept(model: nn.Module, positions: int) -> int:
    """Estimated bytes of one block's activations that autograd keeps for `positions` (tokens) in a step."""
    widest = max(max(layer.in_features, layer.out_features) for layer in blocks.linears(blocks.blocks(model)).values())
    return positions * (KEPT * blocks.config(model).hidden_size + WIDE * widest) * model.dtype.itemsize


def must_recompute(model: nn.Module, positions: int) -> bool:
    """Whether the activations of all blocks, for so many `positions` (tokens) in a step, would take too much memory.

    Raises MemoryError when even the activations of one block and the inputs of all blocks don't fit.
    """
    count, one, free = len(blocks.blocks(model)), kept(model, positions), psutil.virtual_memory().available
    if count * one <= SHARE * free:
        return False
    least = one + count * positions * blocks.config(model).hidden_size * model.dtype.itemsize
    if least > free:
        raise MemoryError(
            f"a step over {positions:,} positions needs about {least / 1e9:.1f} GB beside the model and "
            f"{free / 1e9:.1f} GB are free; use fewer windows in a batch, or shorter ones."
        )
    return True


@contextlib.contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Context in which the blocks of `model` keep only their inputs for the backward pass, and run again in it."""
    with contextlib.ExitStack() as stack:
        for block in blocks.blocks(model):
            # a block in eval mode draws no random numbers, so no generator state needs to be restored
            again = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            block.forward = again
            stack.callback(block.__dict__.pop, "forward")
        yield
