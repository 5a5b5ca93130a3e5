"""Peak memory bandwidth and arithmetic rate of this machine: measured, never guessed.

Measured in a few seconds once per machine, number of threads and device, and stored in the cache folder. A result
measured on a busy machine is provisional: the next call measures again and keeps the better of the two.
"""

import json
import os
from dataclasses import asdict, dataclass

import torch

from lib import files, machine, timing

READ_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}  # far larger than the last-level cache
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # of the square matrices multiplied
SLOW = 0.15  # seconds: a product that takes longer is not tried at the next larger size
ROUNDS = 5


@dataclass(frozen=True)
class Peaks:
    """`bandwidth` in bytes/s; `flops` in FLOP/s by type name, such as {"float32": ..., "bfloat16": ...}.

    `quiet`: whether the machine had cores to spare when this was measured.
    """

    bandwidth: float
    flops: dict[str, float]
    quiet: bool = True

    def of(self, dtype: torch.dtype) -> float | None:
        """Peak FLOP/s for products of this type, None where it was not measured."""
        return self.flops.get(str(dtype).removeprefix("torch."))


def measure(device: str = "cpu", *, fresh: bool = False) -> Peaks:
    """The peaks of `device`: from the cache folder, or measured now (`fresh`, or nothing there yet)."""
    kind = torch.device(device).type
    if kind not in READ_BYTES:
        raise ValueError(f"device={str(device)!r} has no peak measurement; choose cpu or cuda.")
    path = _path(kind)
    kept = None if fresh else _read(path)
    if kept is not None and kept.quiet:
        return kept
    quiet = _quiet()
    flops = {name: _flops(kind, getattr(torch, name)) for name in ("float32", "bfloat16")}
    found = Peaks(_bandwidth(kind), flops, quiet)
    if kept is not None:
        best = {name: max(rate, kept.flops.get(name, 0.0)) for name, rate in flops.items()}
        found = Peaks(max(found.bandwidth, kept.bandwidth), best, quiet)
    files.write_text(path, json.dumps(asdict(found), indent=1) + "\n")
    return found


def known(device: str = "cpu") -> Peaks | None:
    """The peaks of `device` as they were measured before; None where they were not. Nothing is measured."""
    return _read(_path(torch.device(device).type))


def _path(kind: str):
    return files.cache() / f"peaks-{machine.identity()}-{kind}-{torch.get_num_threads()}.json"


def _read(path) -> Peaks | None:
    """The stored peaks; None when nothing was measured yet, or another version wrote them."""
    try:
        return Peaks(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _quiet() -> bool:
    """Whether the processes of the last minute, this one included, fit on the cores (unknown counts as quiet)."""
    return not hasattr(os, "getloadavg") or os.getloadavg()[0] <= machine.cores() + 0.5


def _bandwidth(kind: str) -> float:
    """Bytes/s of reading a buffer once (its sum), the best of `ROUNDS`: disturbances only ever slow it down."""
    buffer = torch.ones(READ_BYTES[kind] // 4, device=kind)
    return buffer.nbytes / _best(buffer.sum)


def _flops(kind: str, dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices, the best over sizes and rounds; slow sizes end the search."""
    best = 0.0
    for side in SIDES[kind]:
        left = torch.rand(side, side, generator=torch.Generator().manual_seed(0)).to(kind, dtype)
        taken = _best(left.mm, left)
        best = max(best, 2 * side**3 / taken)
        if 8 * taken > SLOW:
            break
    return best


def _best(function, *args) -> float:
    """Seconds of the fastest of `ROUNDS` calls, after one that does not count."""
    with torch.no_grad():
        function(*args)
        taken = []
        for _ in range(ROUNDS):
            with timing.stopwatch() as watch:
                function(*args)
            taken.append(watch.seconds)
    return min(taken)
