"""Resuming: finished blocks of a walk on disk, so that a killed job ends in the bytes of an undisturbed one."""

import functools
import hashlib
import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import files
from lib.models import blocks
from lib.quantizers.grid import Quantized

PARTS = ("codes", "scale", "zero_point", "codebook")  # the tensors of a `Quantized`


class State:
    """Finished blocks of a walk in `folder`, one safetensors file each, complete or absent.

    job: what decides the bytes (model, calibration, parameters); `circumstances` are added where they are not given. A
    folder of another job is refused, with what differs.
    """

    def __init__(self, folder: Path | str, **job):
        job = circumstances() | job
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
    changed = sorted(key for key in before | job if before.get(key) != job.get(key))
    if changed:
        given = "; ".join(f"{key}={_short(before.get(key))} there, {_short(job.get(key))} here" for key in changed)
        remedy = "use the same arguments or a new folder"
        if "threads" in changed and "threads" in before:
            remedy += f", and torch.set_num_threads({before['threads']})"
        raise ValueError(f"{folder} holds another job ({given}); {remedy}.")


def _short(value: str | None) -> str | None:
    """`value` with the first 12 digits of each SHA-256 in it, which tell two apart."""
    return value and re.sub(r"\b[0-9a-f]{64}\b", lambda found: found[0][:12], value)


def fingerprint(model: nn.Module, tokens: Tensor | None = None, device: str | None = None) -> dict[str, str]:
    """SHA-256 of the model's weights and of the calibration tokens (where there are any), and the type of the device.

    device: where the work is done, as a method is told; None is where the model is.
    """
    from lib.sources import models, texts

    found = {"model": models.fingerprint(model), "device": torch.device(device or blocks.device(model)).type}
    return found if tokens is None else found | {"calibration": texts.data_hash(tokens)}


def circumstances(package: str = "quantizers") -> dict[str, str]:
    """What decides the bytes of a job beside its arguments: the code of `lib/<package>`, torch, and its threads.

    Another number of threads adds up in another order, which the last bit of a sum shows.
    """
    return {"code": code(package), "torch": torch.__version__, "threads": str(torch.get_num_threads())}


@functools.cache
def code(package: str) -> str:
    """The SHA-256 of the files of `lib/<package>`, with their names, as they are when a process first asks."""
    digest = hashlib.sha256()
    folder = files.ROOT / "lib" / package
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return f"lib/{package} {digest.hexdigest()}"
