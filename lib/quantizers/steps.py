"""Resuming a training: parameters and optimizer moments on disk, so that a killed job ends in the same bytes."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import files
from lib.quantizers.state import State, fingerprint

EVERY = 60  # seconds between two saves; a killed job repeats at most these
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what Adam keeps of each parameter


class Steps:
    """State of a training in `folder` (None keeps nothing): one safetensors file, replaced whole at each save.

    losses: one a step, those of the steps before a kill included.
    """

    def __init__(self, folder: Path | None):
        self.path = folder and folder / "training.safetensors"
        self.losses: list[float] = []
        self._saved = time.monotonic()

    @classmethod
    def open(cls, folder, model: nn.Module, tokens: Tensor, **job) -> "Steps":
        """The state in `folder` of this very job; raises ValueError, naming what differs, for another one's."""
        if folder is None:
            return cls(None)
        return cls(State(folder, **fingerprint(model, tokens), **job).folder)

    def save(
        self, step: int, loss: float, parameters: dict[str, Tensor], optimizer, *, every: float | None = None
    ) -> None:
        """Note the `loss` of the step just done, and write everything if the last time is `every` (`EVERY`) s ago."""
        from safetensors.torch import save

        self.losses.append(loss)
        if self.path is None or time.monotonic() - self._saved < (EVERY if every is None else every):
            return
        tensors = {}
        for name, parameter in parameters.items():
            kept = {key: optimizer.state[parameter][key] for key in MOMENTS}
            tensors |= {f"{name}:{key}": tensor.detach().cpu() for key, tensor in {"value": parameter, **kept}.items()}
        note = {"step": str(step), "losses": json.dumps(self.losses)}
        files.write_bytes(self.path, save(tensors, metadata=note))
        self._saved = time.monotonic()

    @torch.no_grad()
    def restore(self, parameters: dict[str, Tensor], optimizer) -> int:
        """Put what was saved into `parameters` and `optimizer`; returns the number of steps that are done."""
        from safetensors import safe_open

        if self.path is None or not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(f"{name}:value"))
                optimizer.state[parameter] = {key: file.get_tensor(f"{name}:{key}") for key in MOMENTS}
            note = file.metadata()
        self.losses = json.loads(note["losses"])
        return int(note["step"])
