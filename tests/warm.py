"""Interpreters that are forked from one which has imported torch and transformers: a fresh one takes seconds of CPU.

`command(folder)` starts that one and writes a program into `folder` which takes a Python command line (`-c CODE`,
`-m MODULE`, a script) and runs it in a process of its own, forked from there: with the caller's environment, working
folder, standard streams and PYTHONPATH, without a module of this repository, and with the exit status that Python
would have. Whoever kills the program kills what it runs. What any other option asks for goes to Python itself.
"""

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

PRELOADED = (
    "torch",
    "torch.distributed",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.trainer",
    "datasets",
    "safetensors.torch",
)
_STREAMS = 3  # standard input, output and error
_OPTIONS = ("-P", "-u")  # of Python, known here beside what to run


def command(folder: Path) -> tuple[Path, subprocess.Popen]:
    """The program, and the process that it asks; close the latter's standard input to end it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(16)  # who asks before everything is imported waits
    program = folder / "python"
    asking = shlex.join([sys.executable, "-ISE", __file__, sys.executable, str(folder / "socket")])
    program.write_text(f'#!/bin/sh\nexec {asking} "$@"\n')
    program.chmod(0o755)
    server = [sys.executable, __file__, str(program), str(listener.fileno())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork has none of the threads that waited for work
    environment.pop("PYTHONPATH", None)
    with listener:
        passed = {"stdin": subprocess.PIPE, "pass_fds": [listener.fileno()], "env": environment}
        return program, subprocess.Popen(server, **passed)


def ask(python: str, address: str, *arguments: str):
    """What the program does: hand everything over and end as what it asked for ends."""
    kind = next((each for each in arguments if each not in _OPTIONS), "-")
    if kind.startswith("-") and kind not in ("-c", "-m"):
        os.execv(python, [python, *arguments])
    job = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(job).to_bytes(8)], range(_STREAMS))
        connection.sendall(job)
        status = int(connection.recv(16) or b"-9")
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(listener: socket.socket):
    """Answer until standard input is closed; returns (arguments, environment, folder) in each forked process."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()
        connection, _ = listener.accept()
        if not os.fork():  # whose child runs the job, which it kills once nobody waits for it
            listener.close()
            job = _attended(connection)
            if job:
                return job
            os._exit(0)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _attended(connection: socket.socket):
    size, streams, _, _ = socket.recv_fds(connection, 8, _STREAMS)
    job = json.loads(connection.recv(int.from_bytes(size), socket.MSG_WAITALL))
    reading, writing = os.pipe()
    signal.signal(signal.SIGCHLD, lambda *_: os.write(writing, b"0"))
    child = os.fork()
    if not child:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for handle in (reading, writing, connection.detach(), *streams):
            os.close(handle)
        return job
    for stream in streams:
        os.close(stream)
    ready, _, _ = select.select([reading, connection], [], [])
    if connection in ready:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    return None


def _run(arguments: list[str], environment: dict, folder: str, program: str):
    """What Python does with a command line."""
    import itertools
    import runpy
    import tempfile
    import types

    import torch

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    tempfile.tempdir = None
    sys.executable = program
    options = list(itertools.takewhile(_OPTIONS.__contains__, arguments))
    kind, *rest = arguments[len(options) :]
    if "-u" in options:
        sys.stdout.reconfigure(write_through=True)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = (
        []
        if "-P" in options
        else [folder if kind == "-m" else "" if kind == "-c" else str(Path(kind).resolve().parent)]
    )
    sys.path[:1] = first + paths
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        code = compile(rest[0], "<string>", "exec")
    else:
        sys.argv, main.__file__ = [kind, *rest], kind
        code = compile(Path(kind).read_bytes(), kind, "exec")
    exec(code, main.__dict__)


def _end(work):
    """End as Python does behind `work`, but leave the modules as they are: taking them apart takes half a second."""
    import atexit
    import threading

    status = 0
    try:
        work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__" and sys.flags.isolated:
    ask(*sys.argv[1:])
elif __name__ == "__main__":
    import gc
    import importlib

    sys.path[0] = ""  # instead of this folder
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    job = serve(socket.socket(fileno=int(sys.argv[2])))
    _end(lambda: _run(*job, sys.argv[1]))
