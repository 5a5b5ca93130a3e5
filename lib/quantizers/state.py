"""Resuming: finished blocks of a walk on disk, so that a killed job ends in the bytes of an undisturbed one."""

import json
from pathlib import Path

from torch import Tensor, nn

from lib import files
from lib.quantizers.grid import Quantized


class State:
    """Finished blocks of a walk in `folder`, one safetensors file each, complete or absent.

    job: what decides the bytes (model, calibration, parameters). A folder of another job is refused, with what differs.
    """

    def __init__(self, folder: Path | str, **job):
        self.folder, self.job = Path(folder), {key: str(value) for key, value in sorted(job.items())}
        note = self.folder / "job.json"
        if note.exists():
            before = json.loads(note.read_text())
            if changed := {key for key in before | self.job if before.get(key) != self.job.get(key)}:
                given = "; ".join(f"{key}={before.get(key)} there, {self.job.get(key)} here" for key in sorted(changed))
                raise ValueError(f"{self.folder} holds another job ({given}); use the same arguments or a new folder.")
        files.write_text(note, json.dumps(self.job, indent=1))

    def save(self, index: int, kept: dict[str, Quantized]) -> None:
        """Write block `index`."""
        from safetensors.torch import save

        tensors = {}
        for name, (codes, scale, zero, _, _) in kept.items():
            tensors |= {f"{name}:codes": codes.cpu(), f"{name}:scale": scale.cpu()}
            tensors |= {} if zero is None else {f"{name}:zero_point": zero.cpu()}
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
                zero = file.get_tensor(f"{name}:zero_point") if f"{name}:zero_point" in names else None
                codes, scale = file.get_tensor(f"{name}:codes"), file.get_tensor(f"{name}:scale")
                kept[name] = Quantized(codes, scale, zero, bits, size)
        return kept

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def fingerprint(model: nn.Module, tokens: Tensor) -> dict[str, str]:
    """SHA-256 of the model's weights and of the calibration tokens: what a `State` must not mix up."""
    from lib.sources import models, texts

    return {"model": models.fingerprint(model), "calibration": texts.data_hash(tokens)}
