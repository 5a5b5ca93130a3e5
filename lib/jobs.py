"""Resumable jobs: finished parts on disk, complete or absent, under a fingerprint of the job."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from lib import checkpoints, files
from lib.folders.turns import Alone
from lib.models import blocks, structure
from lib.quantized.grid import PARTS, Quantized

BASE = ("models", "architectures", "quantized")  # packages of lib that every job uses
EVERY = 60  # seconds between two saves; a killed job repeats at most these


class Results:
    """Finished results of a job that may have a state or none: `folder` of its files, or None to keep nothing."""

    def __init__(self, state: "JobState | None"):
        self.state, self.folder = state, state and state.folder

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.state:
            self.state.end()


class JobState:
    """Finished blocks of a job in `folder`, one safetensors file each, complete or absent.

    job: what determines the result (model, calibration, parameters); `environment_fingerprint` is added where not
    given. A folder of another job raises ValueError, naming what differs, and one in which another process or
    thread works, until `end` (or the end of a `with`), BlockingIOError. alone: False for processes that do one
    job together, all but the first.
    """

    def __init__(self, folder: Path | str, *, alone: bool = True, **job):
        files.check_name(folder)
        job = environment_fingerprint() | job
        self.folder, self.job = Path(folder), {key: str(value) for key, value in sorted(job.items())}
        note = self.folder / "job.json"
        if not note.exists() and (found := sorted(self.folder.glob("*.safetensors"))) and not note.exists():
            raise ValueError(
                f"{folder} holds {found[0].name} and no job.json, so it is no state; a new folder is allowed, or one "
                "of a state; give another."
            )
        if note.exists() or not files.write_first(note, json.dumps(self.job, indent=1)):
            same_job(folder, _noted(note), self.job)
        self._alone = Alone(self.folder) if alone else None

    def end(self) -> None:
        """Let other processes work in the folder."""
        if self._alone is not None:
            self._alone.end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def save(self, index: int, kept: dict[str, Quantized]) -> None:
        """Write block `index`."""
        tensors = {}
        for name, quantized in kept.items():
            parts = {part: getattr(quantized, part) for part in PARTS}
            tensors |= {f"{name}:{part}": tensor.cpu() for part, tensor in parts.items() if tensor is not None}
        grids = {name: f"{each.bits} {each.group_size} {each.levels}" for name, each in kept.items()}
        files.write_bytes(self._path(index), safetensors.torch.save(tensors, metadata=grids))

    def load(self, index: int) -> dict[str, Quantized] | None:
        """Read block `index`, or None when it is not finished."""
        if not self._path(index).exists():
            return None
        kept = {}
        with safetensors.safe_open(self._path(index), "pt") as file:
            names = set(file.keys())
            for name, grid in file.metadata().items():
                bits, size, levels = grid.split()
                parts = {part: file.get_tensor(f"{name}:{part}") for part in PARTS if f"{name}:{part}" in names}
                grid = {"bits": int(bits), "group_size": int(size), "levels": levels}
                kept[name] = Quantized(**({"zero_point": None} | parts), **grid)
        return kept

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def _noted(path: Path) -> dict[str, str]:
    """The job stored in a folder."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} names no job; a state's note is a JSON object; give a new folder.")
    return found


def same_job(folder: Path | str, before: dict[str, str], job: dict[str, str]) -> None:
    """Raise ValueError, naming what differs, unless the `job` that `folder` holds from `before` is this one."""
    changed = sorted(key for key in before | job if before.get(key) != job.get(key))
    if changed:
        given = "; ".join(f"{key}={_short(before.get(key))} there, {_short(job.get(key))} here" for key in changed)
        remedy = "use the same arguments or a new folder"
        if "threads" in changed and "threads" in before:
            remedy += f", and torch.set_num_threads({before['threads']})"
        raise ValueError(f"{folder} holds another job ({given}); {remedy}.")


def same_study(note: Path, job: dict[str, str], seeds: Sequence[int]) -> None:
    """Write what a study is into the file `note`; raise ValueError, naming what differs, where it holds another one.

    More seeds are no other study: each has records of its own, and the first one, by which rates are chosen, stays.
    """
    job = {key: value for key, value in job.items() if key != "seeds"} | {"first seed": str(seeds[0])}
    if not files.write_first(note, json.dumps(job, indent=1)):
        before = _noted(note)
        if named := before.pop("seeds", None):  # "(0, 1, 2)", as it was written once
            before["first seed"] = named.strip("()[]").split(",")[0]
        same_job(note.parent, before, job)


def _short(value: str | None) -> str | None:
    """`value` with the first 12 digits of each SHA-256 in it, which tell two apart."""
    return value and re.sub(r"\b[0-9a-f]{64}\b", lambda found: found[0][:12], value)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write a part of a job that is rows: one JSON object a line, behind a line with the SHA-256 of all of them."""
    lines = "".join(f"{json.dumps(row, separators=(',', ':'))}\n" for row in rows)
    files.write_text(path, f"{hashlib.sha256(lines.encode()).hexdigest()}\n{lines}")


def read_rows(path: Path) -> list[dict]:
    """The rows that `write_rows` wrote; ValueError where they are not those of the first line."""
    digest, _, lines = path.read_text(encoding="utf-8").partition("\n")
    if hashlib.sha256(lines.encode()).hexdigest() != digest:
        raise ValueError(
            f"{path} is cut short or was changed: its first line is the SHA-256 of the others; delete it, and it is "
            "written again."
        )
    return [json.loads(line) for line in lines.splitlines()]


def fingerprint(model: nn.Module, tokens: Tensor | None = None, device: str | None = None) -> dict[str, str]:
    """SHA-256 of weights, of layers and settings, and of calibration tokens (if any); the type of the device.

    device: where the work is done; None is the model's device.
    """
    found = {"model": checkpoints.fingerprint(model), "layers": structure.fingerprint(model)}
    found["device"] = torch.device(device or blocks.device(model)).type
    return found if tokens is None else found | {"calibration": files.data_hash(tokens)}


def environment_fingerprint(package: str = "quantizers") -> dict[str, str]:
    """What determines the result of a job beside its arguments: the code, torch's version, and its threads.

    The code is that of `lib/<package>` and of the packages in `BASE`. Another number of threads adds in another order,
    which changes the last bit of a sum.
    """
    return {"code": code(package), "torch": torch.__version__, "threads": str(torch.get_num_threads())}


@functools.cache
def code(package: str) -> str:
    """The SHA-256 of the files of `package` and its `BASE`, with their names, as they are when a process first asks."""
    digest = hashlib.sha256()
    for folder in (files.ROOT / "lib" / name for name in (*BASE, package)):
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return f"lib/{package} {digest.hexdigest()}"
