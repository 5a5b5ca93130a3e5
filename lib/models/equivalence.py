"""Tests on copies of a model's blocks whether a change of weights preserves what they compute.

What lies between two layers is not always known (a clipped value, a gate, a norm per head), so no list of families
decides. Each block is copied, changed and run beside the original: with its own weights and activations, and with
random weights, large in the layers whose outputs change, so that operations which act only on large values (clipping)
show. Only one copy of a block is held at a time.
"""

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from lib.models import blocks, partial
from lib.models.eval_mode import evaluating

LENGTH = 16  # tokens that are plenty for a trial
LEFT = 1e-3  # allowed difference as a fraction of what a block adds to its inputs; rounding leaves about 1e-6
ROUNDING = 1e-5  # and as a fraction of the outputs themselves
LARGE = 2.0**12


@torch.no_grad()
def first_difference(
    model: nn.Module,
    captured,
    change_: Callable[[nn.Module, nn.Module], None],
    *,
    stream: Tensor | None = None,
    enlarged: Collection[nn.Module] = (),
) -> tuple[int, float] | None:
    """The first block whose outputs differ once changed, and by which fraction of what it adds; None where all agree.

    captured: what `capture.capture` gives of a few tokens. change_(block, trial): changes `trial`, a float32 copy of
    `block`, in place. stream: an orthogonal matrix [hidden, hidden] by which the changed blocks' inputs and outputs
    are rotated. enlarged: layers of `model` whose outputs the change rotates or scales; these are tried with random
    weights.
    """
    hidden = captured.hidden.float()
    with evaluating(model):
        for index, (block, call) in enumerate(zip(blocks.blocks(model), captured.calls)):
            call = floated(call)
            made = copy.deepcopy(block).float()
            after, left = _tried(made, block, hidden, call, change_, stream)
            if left is None and enlarged:
                made = randomised(copy.deepcopy(block).float())
                for layer, copied in zip(block.modules(), made.modules()):
                    if layer in enlarged:
                        copied.weight.mul_(LARGE)
                _, left = _tried(made, block, noise(hidden), call, change_, stream)
            if left is not None:
                return index, left
            hidden = after
    return None


def _tried(made, block, hidden: Tensor, call, change_, stream) -> tuple[Tensor, float | None]:
    """The outputs of `made`, a copy of `block`, and their error once it is changed (None: rounding alone)."""
    expected = run(made, hidden, call)
    change_(block, made)
    found = run(made, _turned(hidden, stream), call)
    off, adds = (found - _turned(expected, stream)).norm(), (expected - hidden).norm()
    agrees = off <= LEFT * adds + ROUNDING * expected.norm()
    return expected, None if agrees else float(off / adds)


def _turned(values: Tensor, stream: Tensor | None) -> Tensor:
    return values if stream is None else (values.double() @ stream.to(values.device)).float()


@torch.no_grad()
def noise(hidden: Tensor) -> Tensor:
    """Standard normal values like `hidden`, the same at every call; no global seed is touched."""
    return torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2)).to(hidden)


def randomised(block: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """`block` with random weights: matrices that keep the size of their inputs, norms near one."""
    generator = generator or torch.Generator().manual_seed(0)
    for name, weight in block.named_parameters():
        values = torch.randn(weight.shape, generator=generator).to(weight.device)
        norm = weight.ndim == 1 and name.endswith("weight")
        weight.copy_(1 + 0.1 * values if norm else values / weight.shape[-1] ** 0.5)
    return block


def run(block: nn.Module, hidden: Tensor, call: tuple[tuple, dict]) -> Tensor:
    """Hidden states after `block`, called as `capture.capture` recorded it."""
    return partial.first(block(hidden, *call[0], **call[1]))


def floated(value):
    """Every floating tensor inside `value`, a block's arguments, as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(floated(part) for part in value)
    return {key: floated(part) for key, part in value.items()} if isinstance(value, dict) else value
