"""Partial forward passes: skips the first blocks of a model, or records what reaches a block."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lib.models import blocks
from lib.models.eval_mode import evaluating

_RESTS: dict[type, tuple | None] = {}  # class of a block -> what it answers behind the states; None for a bare tensor


def first(output: Tensor | tuple) -> Tensor:
    """The hidden states in a block's output."""
    return output[0] if isinstance(output, tuple) else output


def taken(args: tuple, kwargs: dict) -> tuple[Tensor, tuple[tuple, dict]]:
    """The hidden states with which a block is called, by place or by name, and its other arguments."""
    if args:
        return args[0], (args[1:], kwargs)
    return kwargs["hidden_states"], ((), {name: value for name, value in kwargs.items() if name != "hidden_states"})


def answers(model: nn.Module) -> Callable[[Tensor], Tensor | tuple]:
    """The form of the blocks' outputs: the hidden states alone, or a tuple, which the decoder unpacks.

    Tried on one token, once for each class of blocks. Further tensors of a tuple are left out, since they depend on the
    inputs of that call.
    """
    block = blocks.blocks(model)[0]
    if type(block) not in _RESTS:

        def look(*args, **kwargs):
            answer = type(block).forward(block, *args, **kwargs)
            rest = answer[1:] if isinstance(answer, tuple) else None
            _RESTS[type(block)] = rest and tuple(None if isinstance(each, Tensor) else each for each in rest)
            return answer

        # in eval mode: dropout would draw from a generator that a training draws from
        with evaluating(model), instead(block, look):
            ids = torch.zeros(1, 1, dtype=torch.long, device=blocks.device(model))
            blocks.decoder(model)(input_ids=ids, use_cache=False)
    rest = _RESTS[type(block)]
    return (lambda states: states) if rest is None else lambda states: (states, *rest)


@contextlib.contextmanager
def instead(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Context in which `module` runs `forward` instead of its own."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the instance's own, which hides that of its class
        if before is not None:
            module.forward = before


@contextlib.contextmanager
def recorded(model: nn.Module, place: int) -> Iterator[list[Tensor]]:
    """Context with a list that receives the arguments of block `place` whenever the model runs."""
    found: list[Tensor] = []
    block = blocks.blocks(model)[place]
    forward = block.forward

    def listening(*args, **kwargs):
        found[:] = [taken(args, kwargs)[0]]
        return forward(*args, **kwargs)

    with instead(block, listening):
        yield found


@contextlib.contextmanager
def skipped(model: nn.Module, count: int, states: Tensor) -> Iterator[None]:
    """Context in which the first `count` blocks of `model` do not run, but return `states`."""
    if not count:
        yield
        return
    answer = answers(model)(states)
    with contextlib.ExitStack() as stack:
        for block in list(blocks.blocks(model))[:count]:
            stack.enter_context(instead(block, lambda *args, **kwargs: answer))
        yield
