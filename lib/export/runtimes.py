"""Environments of the runtimes that read exports: each in a folder of its own, pinned, made by one command.

    THIMBLE_PEERS=/some/folder python -m lib.export.runtimes executorch onnxruntime-genai openvino mlx
    python -m lib.export.runtimes                  # what there is, whether it is installed, what it takes

An environment whose packages need torch takes it from this project's own: it sees all packages that are installed here,
and installs the others without their requirements, of which ExecuTorch names many that a file does not need.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

from lib import files

_LINK, _DONE = "of_thimble.pth", "installed.txt"


class Runtime(NamedTuple):
    """packages: pinned. shares: whether it sees this project's packages. megabytes, minutes: what installing took."""

    packages: tuple[str, ...]
    shares: bool
    megabytes: int
    minutes: float


RUNTIMES = {
    "onnxruntime-genai": Runtime(("onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "numpy"), False, 220, 0.3),
    "executorch": Runtime(
        (
            "executorch==1.5.1", "torchao==0.18.0", "flatbuffers==25.12.19", "ruamel.yaml==0.19.1",
            "parameterized==0.9.0", "pytorch-tokenizers==1.5.0", "expecttest==0.3.0",
        ),
        True, 190, 0.2,
    ),
    "mlx": Runtime(("mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2"), True, 69, 0.2),
    "openvino": Runtime(("openvino==2026.4.1", "openvino-telemetry==2025.2.0"), True, 210, 0.2),
}  # fmt: skip


def command(name: str) -> tuple[str, str]:
    """The commands that install the runtime `name`, as readers' INSTALL."""
    return ("export THIMBLE_PEERS=~/peers", f".venv/bin/python -m lib.export.runtimes {name}")


def place(name: str) -> Path | None:
    """The folder of the environment of `name`; None where THIMBLE_PEERS is not set."""
    root = os.environ.get("THIMBLE_PEERS")
    return Path(root).expanduser() / name if root else None


def installed(name: str) -> bool:
    """Whether the environment is there, complete."""
    folder = place(name)
    return folder is not None and (folder / "bin" / "python").is_file() and (folder / _DONE).is_file()


def install(name: str) -> Path:
    """Make the environment of `name`, or leave it as it is where it is complete; returns its folder.

    Raises ValueError for an unknown name, FileNotFoundError without THIMBLE_PEERS, OSError for a disk without room,
    RuntimeError with pip's last words.
    """
    if name not in RUNTIMES:
        raise ValueError(f"there is no runtime {name!r}; {files.choices(name, RUNTIMES)}")
    folder, runtime = place(name), RUNTIMES[name]
    if folder is None:
        raise FileNotFoundError("THIMBLE_PEERS is not set; it names a folder for the environments; set it.")
    if installed(name):
        return folder
    files.check_folder(folder.parent, folder, runtime.megabytes << 20)
    folder.parent.mkdir(parents=True, exist_ok=True)
    venv.create(folder, with_pip=True, clear=True)
    if runtime.shares:
        theirs = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(theirs) / _LINK).write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    options = ["--no-deps"] if runtime.shares else []
    done = subprocess.run([*pip, *options, *runtime.packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} could not be installed: {done.stderr.strip().splitlines()[-1]}")
    (folder / _DONE).write_text("\n".join(runtime.packages))
    return folder


def table() -> str:
    """A line a runtime: packages, whether it is installed, megabytes and minutes."""
    lines = []
    for name, runtime in RUNTIMES.items():
        state = (
            "installed" if installed(name) else f"not installed: {runtime.megabytes} MB, {runtime.minutes:g} minutes"
        )
        lines.append(f"{name} ({', '.join(runtime.packages)}): {state}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where everything that was asked for is installed."""
    parser = argparse.ArgumentParser(prog="python -m lib.export.runtimes", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*RUNTIMES, []], metavar="NAME", help=", ".join(RUNTIMES))
    for name in parser.parse_args(arguments).names:
        try:
            print(f"{name}: {install(name)}", flush=True)
        except (OSError, RuntimeError, ValueError) as error:
            print(f"runtimes: {error}", file=sys.stderr)
            return 1
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
