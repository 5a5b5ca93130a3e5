"""Weights spread over the processes that train them: FSDP2, by torch's `fully_shard`.

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 train.py

Each process keeps a part of every weight, of its gradient and of the optimizer's memory, and gathers a block's weights
when the block runs (Zhao et al., arXiv 2304.11277). The loop spreads a model itself, before a training, and puts it
together again behind it, so that the same code runs on GPUs and, for tests, on CPUs, where accelerate spreads nothing.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from lib.models import blocks
from lib.trainers import processes
from lib.trainers.divergence import Diverged

_ASKED = "ACCELERATE_USE_FSDP"  # what `accelerate launch` tells the processes that it starts
_NOT_OURS = {"FSDP_OFFLOAD_PARAMS": "--fsdp_offload_params", "FSDP_ACTIVATION_CHECKPOINTING":
             "--fsdp_activation_checkpointing"}  # fmt: skip


def asked() -> bool:
    """Whether `accelerate launch` was told to spread weights over several processes.

    Raises ValueError for options of which the loop does something else.
    """
    if os.environ.get(_ASKED, "false").lower() != "true":
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"fsdp_version={version}; the loop spreads weights by version 2; add --fsdp_version 2.")
    for name, option in _NOT_OURS.items():
        if os.environ.get(name, "false").lower() == "true":
            raise ValueError(
                f"{option} true; the loop takes false: weights stay where the model computes, and a recipe's "
                "`gradient_checkpointing` forgets what blocks computed; leave it out."
            )
    return processes.launched() > 1


@contextlib.contextmanager
def apart(model: nn.Module) -> Iterator[tuple[bool, torch.device]]:
    """Yield whether weights are to be spread, and where `model` trains; inside, accelerate does not know of the former.

    A model that lies in a CPU's memory is spread over GPUs where there are some: one may be too small for all of it.
    """
    spread, device, before = asked(), blocks.device(model), os.environ.get(_ASKED)
    if spread and torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        device = torch.device("cuda")
    if before is not None:
        os.environ[_ASKED] = "false"
    try:
        yield spread, device
    finally:
        if before is not None:
            os.environ[_ASKED] = before


def spread_over(model: nn.Module) -> bool:
    """Whether the weights of `model` are spread over processes now."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def spread(model: nn.Module, arguments: TrainingArguments, count: int) -> Iterator[None]:
    """Context in which this process has its part of `count` of `model` only; then the whole of it, as it was before.

    All processes must enter with the same weights. Each gathers the whole model at the end, where it lay at the
    beginning, one weight after another. After an error only `Diverged`, which all raise, gets the model back: a process
    can't gather alone.
    """
    if count == 1:
        yield
        return
    _check(model)
    before = [_Module(module) for module in model.modules()]
    whole = {name: (weight, weight.device) for name, weight in model.named_parameters()}
    buffers = [(buffer, buffer.device) for buffer in model.buffers()]
    mesh = init_device_mesh(arguments.device.type, (count,))
    # block by block, so that no more than one is whole at a time; sums over processes are made in float32
    options = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
    kept = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false"
    for block in blocks.blocks(model):
        fully_shard(block, reshard_after_forward=not kept, **options)
    fully_shard(model, **options)
    for weight, _ in whole.values():
        weight.data = weight.data.new_empty(0)
    try:
        yield
    except Exception as error:
        if not isinstance(error, Diverged):
            error.add_note("The model's weights stay spread over the processes; a checkpoint, where one is, has them.")
            raise
        _gather(model, whole, buffers, before)
        raise
    _gather(model, whole, buffers, before)


@contextlib.contextmanager
def readable(model: nn.Module) -> Iterator[None]:
    """Context in which all parts of `model` can be run apart, its embedding or its head say: for measurements.

    The blocks gather themselves when they run; what is outside of them is gathered here.
    """
    if not spread_over(model):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a spread tensor, as itself, not as a copy; others as they are."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor


def like(part: Tensor, other: Tensor) -> Tensor:
    """`part` as this process's part of a tensor spread as `other` is; of plain tensors, itself."""
    if not isinstance(other, DTensor) or part.shape != local(other).shape:
        return part
    shape = {"shape": other.shape, "stride": other.stride()}
    return DTensor.from_local(part, other.device_mesh, other.placements, run_check=False, **shape)


def number(value: Tensor | float) -> float:
    """A number that may be a tensor, or the parts of one in all processes."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)


class _Module:
    """What `fully_shard` changes of a module: its class, its weights and hooks, and attributes that it adds.

    torch has no way back from a spread model. Here it is gone by hand, for torch's pinned version.
    """

    def __init__(self, module: nn.Module):
        self.module, self.kind, self.names = module, type(module), set(module.__dict__)
        changed = {name: each for name, each in module.__dict__.items() if isinstance(each, dict) and name[0] == "_"}
        self.dicts = {name: dict(each) for name, each in changed.items() if name not in ("_buffers", "_modules")}

    def restore(self) -> None:
        """Make the module what it was."""
        self.module.__class__ = self.kind
        for name in set(self.module.__dict__) - self.names:
            del self.module.__dict__[name]
        for name, before in self.dicts.items():
            found = self.module.__dict__[name]
            found.clear()
            found.update(before)
        _composable_state._module_state_mapping.pop(self.module, None)


@torch.no_grad()
def _gather(model: nn.Module, whole: dict, buffers: list, before: list[_Module]) -> None:
    """Put a spread model together again in every process."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    spread = dict(model.named_parameters())
    for name, (weight, device) in whole.items():
        weight.data = spread[name].full_tensor().to(device)
    for buffer, device in buffers:
        buffer.data = buffer.data.to(device)
    for module in before:
        module.restore()


def _check(model: nn.Module) -> None:
    """Raise ValueError for a model that can't be spread."""
    empty = [name for name, weight in model.named_parameters() if weight.is_meta]
    if empty:
        raise ValueError(
            f"{empty[0]} has no values in process {processes.place()}; each process needs the whole model to begin "
            "with; add --fsdp_cpu_ram_efficient_loading false."
        )
    scalars = [name for name, weight in model.named_parameters() if weight.ndim == 0]
    if scalars:
        raise ValueError(
            f"{scalars[0]} is a single number, which can't be spread over processes; weights of one dimension or more "
            "can; run the processes without --use_fsdp."
        )
