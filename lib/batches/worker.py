"""Worker process of one notebook; it ends with its kernel: when done, when stopped, or when the sweep dies.

The kernel of a notebook has a session of its own, so killing a process group misses it. Each worker's environment
carries a mark that kernels and their children inherit; stopping ends every process with that mark. Each worker also
reads a pipe from the sweep, which closes when the sweep ends for whatever reason.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import IO

import psutil

from lib import files

MARK = "THIMBLE_WORKER"
COMMAND = [sys.executable, "-m", "lib.batches.worker"]
# How long an OpenMP thread that waits for the others keeps its core. By default it is several milliseconds: where
# another process holds a core, two threads then wait for each other by burning what both need, and a forward pass takes
# up to 70 times as long. A tenth of a millisecond costs nothing that could be seen on a quiet machine.
_SPINS = "10000"
_KERNEL = {  # `python3` as this very interpreter, whatever the user's other kernels are called
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "Python 3",
    "language": "python",
}


class Worker:
    """A running notebook, which can be ended completely."""

    def __init__(self, job: dict, *, record: str, log: IO, kernels: Path, threads: int | None = None):
        """Start on `job` (keys notebook, output, parameters).

        record: the id under which the notebook's `results.start` writes. log: takes standard output and error.
        kernels: a folder for the kernel's description. threads: what its matrix products may use (None: all).
        """
        files.write_text(kernels / "kernels" / "python3" / "kernel.json", json.dumps(_KERNEL))
        self.mark = uuid.uuid4().hex
        environment = _environment(kernels) | {MARK: self.mark, "THIMBLE_RUN_ID": record}
        environment.setdefault("THIMBLE_QUIET", "1")  # no bars inside the notebook: the sweep has its own
        if "OMP_WAIT_POLICY" not in environment:
            environment.setdefault("GOMP_SPINCOUNT", _SPINS)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        pipes = dict(stdin=subprocess.PIPE, stdout=log, stderr=log)
        self.process = subprocess.Popen(COMMAND, env=environment, start_new_session=True, text=True, **pipes)
        # a process that died at once has closed the pipe: its exit status and log give the reason
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Kill the process, its kernel and their children; harmless when they have ended."""
        if self.process.poll() is None:
            self.process.kill()
        kill_marked(self.mark)
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def _environment(kernels: Path) -> dict[str, str]:
    """The environment with `lib` and the kernel on its paths, and with absolute paths."""
    environment = dict(os.environ)
    for name, first in (("PYTHONPATH", files.ROOT), ("JUPYTER_PATH", kernels.resolve())):
        environment[name] = os.pathsep.join(filter(None, [str(first), os.environ.get(name)]))
    for name in ("THIMBLE_HOME", "THIMBLE_DATA", "THIMBLE_ANSWERS"):
        if os.environ.get(name):
            environment[name] = str(Path(os.environ[name]).expanduser().resolve())
    return environment


def kill_marked(mark: str) -> None:
    """Kill every other process whose environment carries `mark`, until none is left."""
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found += [process] if process.environ().get(MARK) == mark else []
            except (psutil.Error, OSError):
                continue  # ended meanwhile, or another user's
        if not found:
            return
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue
        time.sleep(0.02)  # until they are gone; a zombie, which waits for its parent, counts as gone


def execute(job: dict) -> None:
    """Run the notebook of `job` in the notebook's folder; papermill saves the output after every cell, and raises."""
    import papermill  # loads Jupyter's client, which the sweep does without

    papermill.execute_notebook(
        job["notebook"],
        job["output"],
        job["parameters"],
        kernel_name="python3",
        cwd=str(Path(job["notebook"]).parent),
        progress_bar=False,
    )


def main() -> int:
    """Entry point of the process: the job is the first line of standard input."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow_sweep, daemon=True).start()
    try:
        execute(job)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _follow_sweep() -> None:
    while os.read(0, 1):  # unbuffered: a lock on sys.stdin held by this thread would break the interpreter's shutdown
        pass
    kill_marked(os.environ[MARK])
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
