"""The process that knows the answers: it runs the test, asks the program's process for values, and writes the verdict.

python -m lib.metrics.jail.checker CALLS REPLIES VERDICT; settings come as JSON on standard input. The test is the
data set's and trusted; it is confined all the same, since it works on values that a program chose.
"""

import builtins
import json
import sys
import traceback

from lib.metrics.jail import confine, wire


class ProgramError(Exception):
    """The program raised an exception that is not built in, or exited."""


class Program:
    """The isolated program: calls go out, plain values or exceptions come back.

    broken: why the program can't be called any more; part of the verdict, whatever exceptions the test catches.
    """

    def __init__(self, calls: int, replies: int):
        self._calls, self._replies, self.broken = calls, replies, None

    def reply(self):
        """The next value; raises the program's exception, or ProgramError where it has exited or sends nonsense."""
        try:
            kind, *content = wire.receive(self._replies)
            if kind == "value":
                return wire.decode(content[0])
            name, text = str(content[0]), str(content[1]) if kind == "raise" else ""
        except (EOFError, OSError):
            self.broken = "gone"
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, MemoryError, OverflowError) as error:
            self.broken = f"its answer can't be read ({type(error).__name__})"
        if self.broken:
            raise ProgramError(self.broken)
        if kind == "refused":
            raise OSError(name)
        raise _exception(name)(text)

    def function(self, name: str):
        """A function that asks the program's process for its `name`. Arguments go by value."""

        def candidate(*arguments, **named):
            call = [name, [wire.encode(each) for each in arguments], {k: wire.encode(v) for k, v in named.items()}]
            try:
                wire.send(self._calls, call)
            except OSError:
                self.broken = "gone"
                raise ProgramError(self.broken) from None
            return self.reply()

        candidate.__name__ = name
        return candidate


def judge(settings: dict, program: Program) -> dict:
    """Run the test against the program: {"passed", "reason"}.

    The test's names are those of the preamble (the prompt, whose helpers it may use), with the entry point replaced.
    A test that defines `check(candidate)` is called; one of bare assertions has run when it has been executed.
    """
    try:
        program.reply()  # the program itself has been executed, or has raised
        names = {"__name__": "test"}
        exec(compile(settings["preamble"], "preamble.py", "exec"), names)
        candidate = names[settings["entry_point"]] = program.function(settings["entry_point"])
        exec(compile(settings["test"], "test.py", "exec"), names)
        if "check" in names:
            names["check"](candidate)
    except BaseException as error:
        return {"passed": False, "reason": program.broken or _reason(error, settings["test"])}
    return {"passed": not program.broken, "reason": program.broken or ""}


def _exception(name: str) -> type:
    kind = getattr(builtins, name, None)
    known = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)
    return kind if known else type(name, (ProgramError,), {})


def _reason(error: BaseException, test: str) -> str:
    """The error, and the test's line on which it arose."""
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == "test.py"]
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    where = f" at: {test.splitlines()[lines[-1] - 1].strip()}" if lines else ""
    return f"{text}{where}"[:500]


def main(calls: int, replies: int, verdict: int):
    """Confine this process, judge, report."""
    settings = json.load(sys.stdin)
    try:
        confine.apply(settings)
    except OSError as error:
        return wire.send(verdict, {"refused": str(error)})
    wire.send(verdict, judge(settings, Program(calls, replies)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
