"""The environment of a measurement: machine, versions and commit, without host or user names."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from lib.files import ROOT

PACKAGES = ("torch", "transformers", "numpy", "compressed-tensors", "safetensors", "datasets", "gguf", "papermill")
_CODE = ("lib", "notebooks", "requirements.txt")  # what a commit must cover for a result to be traceable


@functools.cache
def describe() -> dict:
    """Description with keys cpu, cores, memory_gib, gpus (list of names), os and python."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": _gpus(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def label(description: dict | None = None) -> str:
    """One line for tables: "AMD EPYC, 2 cores, 24 GiB"; of this machine, or of a recorded description."""
    machine = describe() if description is None else description
    count = machine.get("cores")
    parts = [machine.get("cpu"), f"{count} core{'' if count == 1 else 's'}", f"{machine.get('memory_gib')} GiB"]
    return ", ".join(map(str, parts + list(machine.get("gpus") or [])))


def identity() -> str:
    """Short hash that names this hardware: speeds measured under another identity don't hold here."""
    hardware = {key: value for key, value in describe().items() if key != "python"}
    return hashlib.sha256(json.dumps(hardware, sort_keys=True).encode()).hexdigest()[:12]


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Threads a matrix product uses: torch's own setting once torch is loaded, else what it would take."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else cores()


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that shape a result, from their metadata; None where one is absent."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> dict:
    """The code's `commit` and whether it is `dirty` (uncommitted changes in lib, notebooks, requirements.txt).

    Both None without git, without a commit, or where the folder is not the root of its own repository.
    """

    def git(*arguments):
        command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    try:
        top, head = git("rev-parse", "--show-toplevel", "HEAD").split("\n")[:2]
        if Path(top).resolve() != ROOT:
            return {"commit": None, "dirty": None}
        return {"commit": head, "dirty": bool(git("status", "--porcelain", "--", *_CODE).strip())}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name."""
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return " ".join(line.split(":", 1)[1].split())
    except OSError:
        pass
    if platform.system() == "Darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
        if name:
            return name
    return platform.processor() or platform.machine() or "unknown"


def _gpus() -> list[str]:
    """Names of the NVIDIA devices, asked from the driver so that torch need not be loaded."""
    if not shutil.which("nvidia-smi"):
        return []
    return [line.strip() for line in _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()]


def _output(command: list[str]) -> str:
    """Standard output of a command, empty when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
