"""The state of all global random generators, as what a checkpoint can hold."""

import random

import numpy as np
import torch


def random_state() -> dict:
    """State of Python's, NumPy's and torch's global random generators, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return {"tensors": tensors, "plain": {"python": [version, list(numbers), gauss], "numpy": [kind, *rest]}}


def set_random_state(state: dict) -> None:
    """Put back what `random_state` returned."""
    tensors, plain = state["tensors"], state["plain"]
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, *rest = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    torch.set_rng_state(tensors["torch"])
    for index in range(sum(name.startswith("cuda.") for name in tensors)):
        torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
