"""Processes that train one model together: who is first, and decisions that all of them must share.

Each has a clock and a part of the rows of its own. What one alone knows (its loss isn't finite, its time is up) must
become known to all, since the others would wait for it in the next exchange for ever. Alone, a process decides itself.
"""

import os

import torch
from torch import distributed


def together() -> bool:
    """Whether several processes are joined."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def launched() -> int:
    """How many processes `accelerate launch` or torchrun started, joined or not yet."""
    return int(os.environ.get("WORLD_SIZE", 1))


def check_alone(what: str, each: str) -> None:
    """Raise ValueError where processes were started to train together `what`, of which `each` should have one."""
    if launched() > 1:
        raise ValueError(
            f"{launched()} processes were started together for {what}; start one {each}, without launcher."
        )


def count() -> int:
    """The number of joined processes."""
    return distributed.get_world_size() if together() else 1


def place() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if together() else 0


def first() -> bool:
    """Whether this process writes what is written once."""
    return place() == 0


def leads() -> bool:
    """Whether this process is the first of those that were started together, joined or not yet."""
    return int(os.environ.get("RANK", 0)) == 0


def added(values: torch.Tensor) -> torch.Tensor:
    """`values` added up over all processes, without a gradient; alone, they themselves."""
    values = values.detach().clone()
    if together():
        distributed.all_reduce(values)
    return values


def somewhere(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process; device: where the processes exchange tensors."""
    if not together():
        return flag
    found = torch.tensor(int(flag), device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found.item())


def of_first(value):
    """The first process's `value`, a small object, in all of them."""
    if not together():
        return value
    found = [value]
    distributed.broadcast_object_list(found, 0)
    return found[0]


def all_of(value) -> list:
    """The small objects `value` of all processes, in order."""
    found = [value] * count()
    if together():
        distributed.all_gather_object(found, value)
    return found
