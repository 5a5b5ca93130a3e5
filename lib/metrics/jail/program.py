"""The process that runs a model-written program: it answers calls, and never learns what they are for.

python -m lib.metrics.jail.program CALLS REPLIES; settings come as JSON on standard input. Whatever the program does
to this process, only values that the checker compares and text of limited length leave it.
"""

import contextlib
import json
import sys
import types

from lib.metrics.jail import confine, wire


def main(calls: int, replies: int):
    """Confine this process, execute the program, then answer one call after the other until the pipe closes."""
    settings = json.load(sys.stdin)
    sys.path[:] = [*sys.path[1:], *settings["packages"]]  # the first is where this package was imported from
    try:
        confine.apply(settings)
    except OSError as error:
        return wire.send(replies, ["refused", str(error)])
    module = sys.modules["program"] = types.ModuleType("program")
    wire.send(replies, _attempt(_execute, module, settings["program"]))
    while True:
        wire.send(replies, _attempt(_call, module, *wire.receive(calls)))


def _execute(module: types.ModuleType, source: str):
    exec(compile(source, "program.py", "exec"), module.__dict__)


def _call(module: types.ModuleType, name: str, arguments: list, named: dict):
    given = [wire.decode(each) for each in arguments]
    return getattr(module, name)(*given, **{key: wire.decode(each) for key, each in named.items()})


def _attempt(action, *arguments) -> list:
    try:
        return ["value", wire.encode(action(*arguments))]
    except BaseException as error:  # SystemExit too: a program can't end this loop by leaving
        return ["raise", type(error).__name__, str(error)[:500]]


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):  # the checker is done
        main(*map(int, sys.argv[1:]))
