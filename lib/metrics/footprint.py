"""Memory of a training, predicted without it: weights, gradients, the optimizer's numbers, and activations.

What autograd keeps depends on every operation of a model, so nothing is estimated by a formula: one block more and one
block less of the model run forward and backward on tensors that have shapes and no content (torch's fake tensors), and
each allocation and release is counted. Memory grows by the same amount with every block, so two depths tell any other;
70 billion weights are predicted on a laptop in seconds.

The loop whose memory this is (`trainers.loop`): AdamW on float32 copies of the trained weights, with two moments; a
copy of them to go back to; gradients in the type of the weights, in float32 for the moment of the step; logits of the
head a chunk of positions at a time; the attention that it trains with. What an allocator keeps of freed memory comes on
top: glibc's holds hundreds of megabytes of a step's fragments.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lib.models import attention, blocks
from lib.models.logits import CHUNK_BYTES

DEPTHS = (2, 3)  # blocks of the two models that are tried
COPIES = 12  # bytes of a trained weight in the optimizer: float32 value and two moments
CHUNKS = 8  # chunks of logits taken at once where the head is trained (`trainers.chunked.slices`)


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training, by what they hold.

    activations: kept for the backward pass. transient: the most beside them while it runs. logits: of the loss. step:
    float32 gradients, in the optimizer's step. passes: forward passes of a step, whose gradients add up.
    """

    weights: int
    undo: int
    gradients: int
    optimizer: int
    activations: int
    transient: int
    logits: int
    step: int
    passes: int = 1

    @property
    def total(self) -> int:
        """Bytes at the peak: as the backward pass begins or ends, or in the optimizer's step."""
        earlier = self.gradients if self.passes > 1 else 0
        begins = self.activations + max(self.logits, self.transient) + earlier
        ends = self.gradients + max(self.transient, self.step)
        return self.weights + self.undo + self.optimizer + max(begins, ends)

    def at(self, count: int, depths: tuple[int, int], deeper: "Footprint") -> "Footprint":
        """Of a model of `count` blocks, where this one is of the first of `depths` and `deeper` of the other."""
        share = (count - depths[0]) / (depths[1] - depths[0])
        grown = {
            key: round(getattr(self, key) + share * (getattr(deeper, key) - getattr(self, key)))
            for key in ("weights", "undo", "gradients", "optimizer", "activations", "step")
        }
        return replace(deeper, **grown)


class _Live(TorchDispatchMode):
    """Counts the bytes that tensors hold, and the most that they held at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        _pytree.tree_map_only(torch.Tensor, self._add, found)
        self.most = max(self.most, self.now)
        return found

    def _add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self.now += size
            weakref.finalize(storage, self._remove, size)
        return tensor

    def know(self, tensor: torch.Tensor) -> None:
        """Count a tensor that is there already as nothing."""
        self._seen[tensor.untyped_storage()] = 0

    def _remove(self, size: int) -> None:
        self.now -= size


def of(model: nn.Module, *, batch: int, length: int, passes: int = 1) -> Footprint:
    """The footprint of training what of `model` requires a gradient, on `batch` rows of `length` tokens a pass.

    model: one of fake tensors; `predict` makes them.
    """
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}.values()
    trained = [each for each in model.parameters() if each.requires_grad]
    size, live = sum(each.nbytes for each in trained), _Live()
    for each in tensors:
        live.know(each)
    ids = torch.zeros(batch, length, dtype=torch.long)
    # transformers looks at the positions' numbers, which these rows lack, for several texts in one
    alone = mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    with live, alone, attention.fast(), torch.enable_grad():
        states = blocks.decoder(model)(input_ids=ids, use_cache=False)[0]
        kept = live.now
        if states.requires_grad:
            states.backward(torch.zeros_like(states))
    grown = sum(each.grad.nbytes for each in trained if each.grad is not None)
    logits, head = _logits(model, states)
    return Footprint(
        weights=sum(each.nbytes for each in tensors),
        undo=size,
        gradients=size,
        optimizer=COPIES * sum(each.numel() for each in trained),
        activations=kept,
        transient=max(0, live.most - max(kept, grown)) + head,
        logits=logits,
        step=sum(4 * each.numel() for each in trained if each.dtype != torch.float32),
        passes=passes,
    )


def _logits(model: nn.Module, states: torch.Tensor) -> tuple[int, int]:
    """(Bytes of the loss: logits, log-probabilities, gradients by states and head; those of the head's that stay.)"""
    head = blocks.head(model)
    vocabulary, kind = head.out_features, states.dtype.itemsize
    weights = sum(each.numel() for each in head.parameters() if each.requires_grad)
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    rows *= max(1, min(CHUNKS, 4 * weights // CHUNK_BYTES)) if weights else 1
    chunk = min(rows, states[..., 0].numel()) * vocabulary * (8 if kind == 4 else 8 + 2 * kind)
    return max(chunk + weights * (4 + kind), weights * (8 + kind)) + states.nbytes, weights * kind


def predict(
    build: Callable[[int], nn.Module],
    prepare: Callable[[nn.Module], AbstractContextManager],
    count: int,
    *,
    batch: int,
    length: int,
    passes: int = 1,
    depths: tuple[int, int] = DEPTHS,
) -> Footprint:
    """The footprint of a model of `count` blocks, from two shallow ones of fake tensors.

    build: makes a model of so many blocks. prepare: a context in which what is trained requires a gradient. depths: of
    the two models, as many as the trained blocks at least where the others are not trained. Raises ValueError for
    numbers below 1.
    """
    if min(count, batch, passes) < 1 or length < 2:
        raise ValueError(
            f"{count} blocks, batch={batch}, length={length}, passes={passes}; all are 1 or more, the length 2 or more."
        )
    found = []
    for depth in depths:
        with torch.device("meta"):
            model = build(depth)
            with prepare(model), FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), _on_cpu(model):
                found.append(of(model, batch=batch, length=length, passes=passes))
    return found[0].at(count, depths, found[1])


@contextlib.contextmanager
def _on_cpu(model: nn.Module) -> Iterator[None]:
    """Inside the block the tensors of `model`, on the meta device, are fake ones of a CPU, whose kernels are chosen."""
    made, undo = {}, []
    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, tensor in list(held.items()):
                if isinstance(tensor, torch.Tensor):
                    undo.append((held, name, tensor))
                    if id(tensor) not in made:
                        made[id(tensor)] = _fake(tensor)
                    held[name] = made[id(tensor)]
    try:
        yield
    finally:
        for held, name, tensor in undo:
            held[name] = tensor


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
