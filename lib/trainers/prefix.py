"""The blocks that teacher and student have in common at the start: run once, for both.

Pruning leaves the blocks before the first one removed as they were. Where they also stay as they were during healing
(`adapters.full_(model, first=...)`), both models compute the same hidden states there, to the last bit.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lib.models import blocks


def shared(teacher: nn.Module, student: nn.Module) -> int:
    """How many leading blocks, and the embedding before them, have equal weights that the student does not train.

    At most one less than the student has blocks, since something must be left to run.
    """
    pairs = [(blocks.embeddings(teacher), blocks.embeddings(student))]
    pairs += zip(blocks.blocks(teacher), blocks.blocks(student))
    equal = 0
    for one, other in pairs:
        if not _equal(one, other):
            break
        equal += 1
    return min(max(0, equal - 1), len(blocks.blocks(student)) - 1)


@contextlib.contextmanager
def recorded(teacher: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """A list that receives what block `count` of the teacher is given whenever the teacher runs inside the block."""
    found: list[Tensor] = []
    block = blocks.blocks(teacher)[count]
    forward = block.forward

    def listening(states: Tensor, *args, **kwargs):
        found[:] = [states]
        return forward(states, *args, **kwargs)

    block.forward = listening
    try:
        yield found
    finally:
        del block.forward  # the instance's own, which hides that of its class


@contextlib.contextmanager
def skipped(student: nn.Module, count: int, states: Tensor) -> Iterator[None]:
    """Inside the block the student's first `count` blocks do not run; block `count` is given `states`."""
    with contextlib.ExitStack() as stack:
        for block in list(blocks.blocks(student))[:count] if count else []:
            block.forward = lambda *args, **kwargs: states
            stack.callback(block.__dict__.pop, "forward")
        yield


def _equal(one: nn.Module, other: nn.Module) -> bool:
    theirs, ours = dict(one.named_parameters()), dict(other.named_parameters())
    return theirs.keys() == ours.keys() and all(
        not ours[name].requires_grad and torch.equal(theirs[name], ours[name]) for name in ours
    )
