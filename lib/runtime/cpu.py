"""The compiled kernels: built once for the machine at hand, found again, and called through ctypes.

The sources have no dependency but the standard library, so a process that only runs a packed model needs neither torch
nor transformers in memory. torch's extension loader builds them (with ninja, in a process of its own) into the folder
where it keeps extensions (`TORCH_EXTENSIONS_DIR`, else ~/.cache/torch_extensions), under a name that holds the
instruction set and a hash of sources, flags, compiler and torch, so that a stale build is never used. `built.json`
beside the library states the CPU features that it needs and its hash; both are checked before it is loaded.
"""

import contextlib
import ctypes
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

import numpy as np
from filelock import FileLock

from lib import files, folders, machine
from lib.runtime.pack import Packed, check_inputs
from lib.runtime.structures import Matrix

# instruction set -> compiler flags, and what /proc/cpuinfo must list; the first that the CPU has is taken
PATHS = {
    "avx512": (["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma"],
               {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "fma"}),
    "avx2": (["-mavx2", "-mfma"], {"avx2", "fma"}),
    "portable": ([], set()),
}  # fmt: skip
BESIDE = {"avx512": ("-mavx512vbmi", "avx512vbmi")}  # a flag more where the CPU lists this too
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-pthread"]
SOURCES = ("cpu.cpp", "step.h", "mix.h", "attention.h", "cache.h", "products.h", "simd.h", "team.h")
PHASES = ("embedding", "norms", "queries", "attention", "output", "gate and up", "down", "head")
_HERE, _NAME, _TIMEOUT = Path(__file__).parent, "thimble", 900
_BUILD = (
    "import shlex, sys; from torch.utils import cpp_extension; source, folder, *flags = sys.argv[1:]; "
    "cpp_extension.TORCH_LIB_PATH = shlex.quote(cpp_extension.TORCH_LIB_PATH); "  # it may hold spaces, -L takes it bare
    f"cpp_extension.load('{_NAME}', [source], extra_cflags=flags, extra_ldflags=['-Wl,--as-needed', '-pthread'], "
    "build_directory=folder, is_python_module=False)"
)
_KEPT = (f"{_NAME}.so", "built.json", "build.ninja", ".ninja_log", ".ninja_deps", "cpu.o")  # files of a build
_told: set[str] = set()


def instruction_set() -> str:
    """The best of `PATHS` for this CPU."""
    return next(name for name, (_, needed) in PATHS.items() if needed <= cpu_flags())


@functools.cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU features that the system lists; empty where it lists none, or on other architectures."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def library(path: str | None = None) -> ctypes.CDLL | None:
    """The compiled library for an instruction set (None: the best), built on the first call; None without a compiler.

    Without one a line says so once, and callers compute with plain torch instead.
    Raises ValueError for an instruction set that is unknown or that this CPU lacks.
    """
    path = instruction_set() if path is None else path
    if path not in PATHS:
        raise ValueError(f"instruction set {path!r} is unknown; {files.choices(path, PATHS)}")
    missing = PATHS[path][1] - cpu_flags()
    if missing:
        raise ValueError(
            f"instruction set {path!r} needs {', '.join(sorted(missing))}, which this CPU lacks; "
            f"it has what {instruction_set()!r} needs; use that, or None to choose by itself."
        )
    return _library(path)


@functools.cache
def _library(path: str) -> ctypes.CDLL | None:
    folder = place(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if sound(folder) is not True:
                build(path, folder)
    except (OSError, RuntimeError) as error:
        say(f"runtime: no compiled kernels ({str(error).splitlines()[0]}); plain torch computes the same, slowly")
        return None
    found = ctypes.CDLL(str(folder / f"{_NAME}.so"))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    found.thimble_new.restype = found.thimble_team.restype = pointer
    found.thimble_new.argtypes = [pointer] * 5
    found.thimble_free.argtypes = found.thimble_team_free.argtypes = [pointer]
    found.thimble_step.argtypes = [pointer, pointer, number, pointer, pointer, pointer, number, pointer, pointer]
    found.thimble_profile.argtypes = [pointer, number, pointer]
    found.thimble_product.argtypes = [pointer, pointer, pointer, number, pointer]
    found.thimble_rows.argtypes = [pointer, pointer, ctypes.c_long, ctypes.c_long, pointer]
    return found


def place(path: str) -> Path:
    """The folder of the library for an instruction set, named by everything that affects the build."""
    digest = hashlib.sha256(json.dumps([FLAGS, flags(path)[0], _compiler(), platform.machine()]).encode())
    digest.update(importlib.metadata.version("torch").encode())
    for name in SOURCES:
        digest.update((_HERE / name).read_bytes())
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    return Path(root) / f"{_NAME}-{path}-{digest.hexdigest()[:16]}"


def flags(path: str) -> tuple[list[str], set[str]]:
    """Compiler flags for an instruction set on this CPU, and what a CPU must list to run what they make."""
    (given, needed), (flag, name) = PATHS[path], BESIDE.get(path, (None, None))
    return ([*given, flag], needed | {name}) if name in cpu_flags() else (given, needed)


def sound(folder: Path) -> bool | None:
    """Whether a built library can be opened here: True, None where there is none, False (and a line) if unfit."""
    if not folder.is_dir():
        return None
    try:
        built = json.loads((folder / "built.json").read_text())
        lacking = sorted(set(built["needs"]) - cpu_flags())
        reason = f"it needs {', '.join(lacking)}, which this CPU lacks" if lacking else None
        if files.sha256(folder / f"{_NAME}.so") != built["sha256"]:
            reason = "its bytes are not those that were built"
    except (OSError, ValueError, KeyError, TypeError):
        reason = "it is incomplete"
    if reason:
        say(f"runtime: the compiled kernels in {folder.name} can't be used ({reason}); building them again")
    return reason is None


def build(path: str, folder: Path) -> None:
    """Compile for an instruction set into `folder`, complete or absent; RuntimeError when that fails."""
    for tool in (_compiler(), "ninja"):
        if not shutil.which(tool, path=search_path()):
            raise RuntimeError(f"{tool} is not installed")
    given, needed = flags(path)
    say(f"runtime: compiling the kernels for {path}, once, about a minute")
    with folders.replace(folder, kept=_KEPT) as temporary:
        command = [sys.executable, "-c", _BUILD, str(_HERE / SOURCES[0]), str(temporary), *FLAGS, *given]
        searching = os.environ | {"PATH": search_path()}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=searching)
        if done.returncode or not (temporary / f"{_NAME}.so").is_file():
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            errors = [line for line in said if "error:" in line] or said[-1:] or ["no output"]
            raise RuntimeError(f"compiling failed: {errors[0][:200]}")
        built = {"path": path, "needs": sorted(needed), "sha256": files.sha256(temporary / f"{_NAME}.so")}
        files.write_text(temporary / "built.json", json.dumps(built))


def search_path() -> str:
    """PATH with the interpreter's own folder before it: there ninja is installed, whether or not it is activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def say(line: str) -> None:
    """Print a notice once per process."""
    if line not in _told:
        _told.add(line)
        print(line)


@functools.cache
def team(threads: int, path: str | None = None) -> int:
    """The address of a team of threads, kept for the process."""
    return library(path).thimble_team(threads)


def product(packed: Packed, x: np.ndarray, bias: np.ndarray | None = None, *, path: str | None = None) -> np.ndarray:
    """x [n, columns] Wᵀ + bias with int8 activations, float32 [n, rows]; needs the compiled library.

    Raises ValueError for an x or a bias of another shape.
    """
    check_inputs(packed, np.shape(x))
    if bias is not None and np.shape(bias) != (packed.rows,):
        raise ValueError(f"a bias of shape {list(np.shape(bias))} meets {packed.rows} rows; give one number a row.")
    x, bias = (None if part is None else np.ascontiguousarray(part, np.float32) for part in (x, bias))
    out = np.empty((len(x), packed.rows), np.float32)
    matrix = Matrix.of(packed, bias)
    library(path).thimble_product(
        team(machine.threads(), path), ctypes.addressof(matrix), x.ctypes.data, len(x), out.ctypes.data
    )
    return out


def rows(packed: Packed, first: int, last: int, *, path: str | None = None) -> np.ndarray:
    """Dequantized rows `first` to `last` - 1, float32 [last - first, columns]; needs the compiled library."""
    if not 0 <= first <= last <= packed.rows:
        raise ValueError(f"rows {first} to {last - 1} were asked for; the matrix has 0 to {packed.rows - 1}.")
    out = np.empty((last - first, packed.columns), np.float32)
    matrix = Matrix.of(packed)
    library(path).thimble_rows(team(machine.threads(), path), ctypes.addressof(matrix), first, last, out.ctypes.data)
    return out


def _compiler() -> str:
    return os.environ.get("CXX", "c++")
