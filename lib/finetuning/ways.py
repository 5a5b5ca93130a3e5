"""Ways to fine-tune: which weights learn. Each is a context around a training by the one loop.

    with ways.trained_(model, "qlora", rank=16) as adapters:
        loop.train_(model, rows, next_token.loss, learning_rate=ways.learning_rate(model, "qlora"), ...)
    merging.into_low_bits_(model, adapters, calibration)

Ways without adapters leave what they learned in the model; `scales` in the numbers that a quantized model has anyway,
so that it stays on its grid and not a byte is added (PEQA, Kim et al., arXiv 2305.14152).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from lib import files
from lib.models import blocks
from lib.quantizers import activations, e2e_qp
from lib.quantizers.learnable_scale import LearnableScaleLinear
from lib.trainers import adapters, low_rank
from lib.trainers.low_rank import Adapters


@contextlib.contextmanager
def _full_(model: nn.Module) -> Iterator[None]:
    with adapters.full_(model, embeddings=True):
        yield


@contextlib.contextmanager
def _head_(model: nn.Module, **options) -> Iterator[None]:
    with adapters.head_and_last_(model, **options):
        yield


@contextlib.contextmanager
def _scales_(model: nn.Module) -> Iterator[None]:
    """Train the scales alone; they are stored, as bfloat16, when the context ends without an error."""
    parts = {name: LearnableScaleLinear(layer, model.dtype) for name, layer in e2e_qp.quantized_layers(model).items()}
    with adapters.noted(model, trained="scales"), e2e_qp.trained_alone(model, parts, False), torch.enable_grad():
        yield
        for part in parts.values():
            part.settle_()


def _low_rank(kind: str) -> Callable:
    @contextlib.contextmanager
    def attached_(model: nn.Module, *, first: int = 0, **options) -> Iterator[Adapters]:
        attached = low_rank.attached_(model, kind=kind, first=first, **options)
        with attached as found, adapters.noted(model, trained=kind, first=first, rank=found.rank, alpha=found.alpha):
            yield found

    return attached_


SHORT = 4  # times the rate of `e2e_qp`, for trainings of fewer steps


class Way(NamedTuple):
    """What trains it, its peak learning rate (None: by the bits), and whether the model must be quantized (or not)."""

    trained: Callable
    learning_rate: float | None
    quantized: bool | None


WAYS = {
    "full": Way(_full_, 5e-5, False),
    "head": Way(_head_, 3e-4, None),
    "lora": Way(_low_rank("lora"), 5e-4, False),
    "rslora": Way(_low_rank("rslora"), 2e-4, None),
    "dora": Way(_low_rank("dora"), 5e-4, None),
    "qlora": Way(_low_rank("lora"), 5e-4, True),
    "scales": Way(_scales_, None, True),
}


def by_name(way: str, model: nn.Module) -> Way:
    """The way called `way`, if `model` can go it; ValueError with what is allowed."""
    if way not in WAYS:
        raise ValueError(f"way={way!r} to fine-tune is unknown; {files.choices(str(way), WAYS)}")
    found, layers = WAYS[way], blocks.linears(blocks.blocks(model)).values()
    quantized = any(blocks.is_quantized(layer) for layer in layers)
    if found.quantized not in (None, quantized):
        state = "has quantized layers" if quantized else "has none"
        fitting = [name for name, each in WAYS.items() if each.quantized in (None, quantized)]
        raise ValueError(
            f"way={way!r} is for models {'with' if found.quantized else 'without'} quantized layers, and "
            f"{type(model).__name__} {state}; {', '.join(fitting)} are allowed; choose one."
        )
    return found


def learning_rate(model: nn.Module, way: str) -> float:
    """The usual peak of a way's learning rate for `model`; that of scales falls with the bits (`e2e_qp.rate_of`)."""
    found = by_name(way, model).learning_rate
    # scales are stored in bfloat16: at the rate of `e2e_qp`, which takes hundreds of steps, a few move none of them
    return SHORT * e2e_qp.rate_of(list(e2e_qp.quantized_layers(model).values())) if found is None else found


@contextlib.contextmanager
def trained_(model: nn.Module, way: str, *, recompute: bool = False, **options) -> Iterator[Adapters | None]:
    """Context in which the weights of `way` alone are trained; yields the adapters, None where the way has none.

    recompute: run each block again in the backward pass instead of keeping its activations. options: those of
    `low_rank.attached_` (rank, alpha, first, seed, start) for adapters, `last` blocks for "head". At the end adapters
    are off the model; what other ways learned is in it. Raises ValueError for what `model` can't, before anything is
    changed.
    """
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(by_name(way, model).trained(model, **options))
        if recompute:
            stack.enter_context(activations.recomputed(model))
        yield found
