"""Resuming: finished blocks of a walk on disk, so that a killed job ends in the bytes of an undisturbed one."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import files
from lib.quantizers.grid import Quantized

PARTS = ("codes", "scale", "zero_point", "codebook")  # the tensors of a `Quantized`


class State:
    """Finished blocks of a walk in `folder`, one safetensors file each, complete or absent.

    job: what decides the bytes (model, calibration, parameters). A folder of another job is refused, with what differs.
    """

    def __init__(self, folder: Path | str, **job):
        job |= {"torch": torch.__version__}
        self.folder, self.job = Path(folder), {key: str(value) for key, value in sorted(job.items())}
        note = self.folder / "job.json"
        if note.exists():
            same_job(folder, json.loads(note.read_text()), self.job)
        files.write_text(note, json.dumps(self.job, indent=1))

    def save(self, index: int, kept: dict[str, Quantized]) -> None:
        """Write block `index`."""
        from safetensors.torch import save

        tensors = {}
        for name, quantized in kept.items():
            parts = {part: getattr(quantized, part) for part in PARTS}
            tensors |= {f"{name}:{part}": tensor.cpu() for part, tensor in parts.items() if tensor is not None}
        grids = {name: f"{quantized.bits} {quantized.group_size}" for name, quantized in kept.items()}
        files.write_bytes(self._path(index), save(tensors, metadata=grids))

    def load(self, index: int) -> dict[str, Quantized] | None:
        """Read block `index`, or None when it is not finished."""
        from safetensors import safe_open

        if not self._path(index).exists():
            return None
        kept = {}
        with safe_open(self._path(index), "pt") as file:
            names = set(file.keys())
            for name, grid in file.metadata().items():
                bits, size = map(int, grid.split())
                parts = {part: file.get_tensor(f"{name}:{part}") for part in PARTS if f"{name}:{part}" in names}
                kept[name] = Quantized(
                    parts.pop("codes"), parts.pop("scale"), parts.pop("zero_point", None), bits, size, **parts
                )
        return kept

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def same_job(folder: Path | str, before: dict[str, str], job: dict[str, str]) -> None:
    """Raise ValueError, naming what differs, unless the `job` that `folder` holds from `before` is this one."""
    if changed := {key for key in before | job if before.get(key) != job.get(key)}:
        given = "; ".join(f"{key}={before.get(key)} there, {job.get(key)} here" for key in sorted(changed))
        raise ValueError(f"{folder} holds another job ({given}); use the same arguments or a new folder.")


def fingerprint(model: nn.Module, tokens: Tensor) -> dict[str, str]:
    """SHA-256 of the model's weights and of the calibration tokens: what a `State` must not mix up."""
    from lib.sources import models, texts

    return {"model": models.fingerprint(model), "calibration": texts.data_hash(tokens)}
