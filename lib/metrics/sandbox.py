"""Run a model-written program against its test, contained: the only place where such programs run.

Three processes. The parent starts two others and keeps the time. One runs the program: no network, no other process
or thread, no signal to anybody, no file but Python's own and those in an empty folder, limited CPU time, memory, file
size and output. The other runs the test, confined the same way; it asks the first for values over a pipe and compares
them itself. The program's process never holds an expected answer, a checker or a verdict, so there is nothing in it
to read, patch or leave early with success.

Isolation is the Linux kernel's (Landlock, seccomp, resource limits; no rights needed); without it nothing is run.
Limits count CPU time, so that a busy machine gives the same verdicts; the wall-clock limit is for programs that sleep.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from lib import files
from lib.metrics.jail import confine, wire

_TICK = 0.05  # seconds between checks of the folder


class IsolationError(RuntimeError):
    """This machine can't isolate a program, so none was run."""


@dataclass(frozen=True)
class Limits:
    """cpu_seconds: of the program, and of its test. wall_seconds: of both together, for those that sleep.
    memory_bytes: address space. folder_bytes: of all files written. output_bytes: of everything printed."""

    cpu_seconds: int = 5
    wall_seconds: float = 120.0
    memory_bytes: int = 1 << 30
    folder_bytes: int = 1 << 24
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """passed: every assertion held. reason: why not, empty where passed. output: the first 10,000 bytes printed."""

    passed: bool
    reason: str
    output: str


def run(
    program: str,
    test: str,
    entry_point: str,
    *,
    preamble: str = "",
    allow_execution: bool = False,
    limits: Limits = Limits(),
) -> Verdict:
    """Whether `program` (source text) passes `test`.

    test: trusted source text that defines `check(candidate)`, as HumanEval's do, or asserts at top level.
    entry_point: the function under test. preamble: trusted source text whose names the test may use (the prompt).
    Arguments and returned values cross by value: None, numbers, texts, bytes, containers, ranges, iterators; any
    other object arrives as one that equals nothing.
    allow_execution: must be True, else PermissionError. IsolationError where the machine can't isolate a program.
    """
    if allow_execution is not True:
        raise PermissionError(
            f"allow_execution={allow_execution!r}; True is needed to run programs that a model wrote; pass "
            "allow_execution=True if you want that (they run without network, in an empty folder, under limits)."
        )
    require_isolation()
    with tempfile.TemporaryDirectory(prefix="thimble-") as folder:
        shared = _settings(limits, folder)
        calls, replies, verdict, output = (os.pipe() for _ in range(4))
        runner = _start("program", (calls[0], replies[1]), folder, output[1])
        checker = _start("checker", (calls[1], replies[0], verdict[1]), folder, subprocess.DEVNULL)
        try:
            for handle in (*calls, *replies, verdict[1], output[1]):
                os.close(handle)
            _tell(runner, shared | {"program": program})
            _tell(checker, shared | {"test": test, "entry_point": entry_point, "preamble": preamble})
            said, printed, overrun = _watch(verdict[0], output[0], folder, limits)
            status = _end(runner, checker)
        finally:
            _end(runner, checker)
            os.close(verdict[0])
            os.close(output[0])
    return _verdict(said, printed, overrun, status, limits)


def require_isolation():
    """Raise IsolationError where this machine can't isolate a program."""
    reason = confine.missing()
    if reason:
        raise IsolationError(
            f"programs can't be contained here: {reason}; Linux 5.13 or newer with Landlock and seccomp is needed; "
            "run tasks that execute code on such a machine, or leave them out."
        )


def _settings(limits: Limits, folder: str) -> dict:
    user = confine.user()
    if user is not None:
        os.chown(folder, user, user)
    settings = dict(cpu=limits.cpu_seconds, memory=limits.memory_bytes, file=limits.folder_bytes, folder=folder)
    settings |= dict(parent=os.getpid(), user=user, readable=confine.readable(), packages=confine.packages())
    return settings


def _start(module: str, handles: tuple, folder: str, output) -> subprocess.Popen:
    """Start a Python process with only these pipes: no environment, no installed packages, fixed hash seed."""
    command = [sys.executable, "-S", "-s", "-P", "-B", "-u", "-m", f"lib.metrics.jail.{module}", *map(str, handles)]
    environment = {"PYTHONPATH": str(files.ROOT), "PYTHONHASHSEED": "0", "TMPDIR": folder, "HOME": folder}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        pass_fds=handles,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _tell(process: subprocess.Popen, settings: dict):
    with contextlib.suppress(BrokenPipeError):  # it has exited already, and its verdict is missing
        process.stdin.write(json.dumps(settings).encode())
        process.stdin.close()


def _watch(verdict: int, output: int, folder: str, limits: Limits) -> tuple[dict | None, bytes, str]:
    """Wait for the verdict: (verdict or None, what was printed, which of the parent's limits was passed)."""
    printed, deadline = b"", time.monotonic() + limits.wall_seconds
    with selectors.DefaultSelector() as waiting:
        waiting.register(verdict, selectors.EVENT_READ)
        waiting.register(output, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in waiting.select(_TICK)}
            if output in ready:
                part = os.read(output, 1 << 16)
                printed += part
                if not part:
                    waiting.unregister(output)
            if len(printed) > limits.output_bytes:
                return None, printed, f"printed more than {limits.output_bytes:,} bytes"
            if verdict in ready:
                try:
                    return wire.receive(verdict), printed, ""
                except EOFError:
                    return None, printed, ""
            if time.monotonic() > deadline:
                return None, printed, f"took longer than {limits.wall_seconds:g} s"
            if _size(folder) > limits.folder_bytes:
                return None, printed, f"wrote more than {limits.folder_bytes:,} bytes"


def _size(folder: str) -> int:
    """Bytes of the files in `folder`, at least a block for each."""
    total = 0
    for entry in os.scandir(folder):
        try:
            total += max(entry.stat(follow_symlinks=False).st_size, 4096)
        except FileNotFoundError:
            continue  # deleted meanwhile
    return total


def _end(runner: subprocess.Popen, checker: subprocess.Popen) -> tuple[int, int]:
    """Kill running processes; returns how each ended. The program gets a moment to end by itself."""
    try:
        runner.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        runner.kill()
    checker.kill()
    return runner.wait(), checker.wait()


def _verdict(said: dict | None, printed: bytes, overrun: str, status: tuple[int, int], limits: Limits) -> Verdict:
    if said and "refused" in said:
        raise IsolationError(
            f"programs can't be contained here: {said['refused']}; nothing was run; see the kernel's log."
        )
    reason = overrun or (_ending(status, limits) if said is None or said["reason"] == "gone" else said["reason"])
    return Verdict(bool(said and said["passed"]), reason, printed[:10_000].decode(errors="replace"))


def _ending(status: tuple[int, int], limits: Limits) -> str:
    """The reason for a missing verdict, from how the processes ended."""
    program, checker = status
    if -signal.SIGXCPU in status:
        return f"used more than {limits.cpu_seconds} s of CPU time"
    if program < 0:
        return f"the program was ended by {signal.Signals(-program).name}"
    return f"the program left with status {program} before its test was over (the test's status: {checker})"
