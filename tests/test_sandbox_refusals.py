"""Where the sandbox runs nothing, and its parts taken alone: the filter of system calls, the wire, the checker."""

import json
import math
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics import sandbox
from lib.metrics.jail import checker, confine, landlock, program, seccomp, wire


def test_nothing_runs_unless_asked_for():
    for unclear in (False, None, 1, "yes"):
        with pytest.raises(PermissionError, match="allow_execution=True"):
            sandbox.run("", "", "f", allow_execution=unclear)


def test_nothing_runs_without_isolation(monkeypatch):
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(sandbox.IsolationError, match="has no Landlock"):
        sandbox.run("", "", "f", allow_execution=True)
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "sparc")
    assert "no list of system calls for sparc" in seccomp.missing()
    monkeypatch.setattr(confine.sys, "platform", "darwin")
    assert "darwin" in confine.missing()


@pytest.mark.skipif(confine.missing() is not None, reason=f"no isolation: {confine.missing()}")
def test_a_process_that_can_not_be_confined_runs_nothing(monkeypatch, tmp_path):
    given = sandbox._settings
    monkeypatch.setattr(sandbox, "_settings", lambda *where: given(*where) | {"parent": 1})
    with pytest.raises(sandbox.IsolationError, match="is gone"):
        sandbox.run("def f(): return 1", "assert f() == 1", "f", allow_execution=True)


@pytest.mark.parametrize(
    ("machine", "architecture", "fork"), [("x86_64", 0xC000003E, 57), ("aarch64", 0xC00000B7, 220)]
)
def test_the_filter_allows_what_is_listed_and_nothing_else(machine, architecture, fork):
    column = {"x86_64": 1, "aarch64": 2}[machine]
    entries = [entry.split() for entry in seccomp._ALLOWED.replace("\n", " ").split(",")]
    listed = {int(entry[column]) for entry in entries if entry[column] != "-"}
    code = list(struct.iter_unpack("HBBI", seccomp.program(machine)))
    assert {number for number in range(600) if _filter(code, number, architecture) == 0x7FFF0000} == listed
    assert _filter(code, fork, architecture) == 0x00050001
    assert _filter(code, 0x40000000, architecture) == 0x00050001  # x32's numbers
    assert _filter(code, 0, 0x40000003) == 0x80000000  # another architecture


def _filter(code, number, architecture):
    """What the classic BPF program returns for a call: loads, equal-jumps and returns are all it has."""
    at, loaded = 0, None
    while True:
        operation, if_equal, if_not, value = code[at]
        if operation == 0x06:
            return value
        if operation == 0x20:
            loaded = {0: number, 4: architecture}[value]
        else:
            at += if_equal if loaded == value else if_not
        at += 1


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
keys = st.integers() | st.text() | st.frozensets(st.integers()) | st.tuples(st.text(), st.booleans())
values = st.recursive(
    scalars
    | st.sets(keys)
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9))
    | st.builds(bytearray, st.binary()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_values_cross_the_wire_unchanged(value):
    assert _parts(wire.decode(json.loads(json.dumps(wire.encode(value))))) == _parts(value)


def _parts(value):
    """`value` by types and texts, which tell -0.0, nan and types apart; a set's order means nothing."""
    name = type(value).__name__
    if isinstance(value, dict):
        return name, [(_parts(key), _parts(content)) for key, content in value.items()]
    if isinstance(value, set | frozenset):
        return name, sorted(repr(_parts(each)) for each in value)
    return name, [_parts(each) for each in value] if isinstance(value, list | tuple) else repr(value)


def test_other_objects_arrive_as_something_that_equals_nothing():
    first, second = wire.decode(wire.encode(object())), wire.decode(wire.encode(object()))
    assert first != second and repr(first) == "<object object>"
    assert next(wire.decode(wire.encode(iter([1])))) == 1
    assert math.isnan(wire.decode(wire.encode(float("nan"))))


@pytest.fixture
def ends():
    handles = [*os.pipe(), *os.pipe()]
    yield handles
    for handle in handles:
        try:
            os.close(handle)
        except OSError:
            continue


def judged(ends, *replies, test="assert f(1) == 2"):
    """The checker's verdict when the program's process has sent these replies and left."""
    calls, answers = ends[:2], ends[2:]
    for reply in replies:
        os.write(answers[1], reply) if isinstance(reply, bytes) else wire.send(answers[1], reply)
    os.close(answers[1])
    return checker.judge(dict(test=test, entry_point="f", preamble=""), checker.Program(calls[1], answers[0]))


def test_the_checker_judges_by_the_values_it_gets(ends):
    assert judged(ends, ["value", None], ["value", 2]) == {"passed": True, "reason": ""}
    assert wire.receive(ends[0]) == ["f", [1], {}]


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([["value", None], ["value", 3]], "AssertionError at: assert f(1) == 2"),
        ([["raise", "SystemExit", "0"]], "lib.metrics.jail.checker.SystemExit: 0"),
        ([["value", None], ["raise", "ZeroDivisionError", "x"]], "ZeroDivisionError: x at: assert f(1) == 2"),
        ([["value", None]], "gone"),
        ([["value", None], ["value", ["eval", "1"]]], "its answer can't be read (KeyError)"),
        ([["value", None], ["value"]], "its answer can't be read (IndexError)"),
        ([["value", None], struct.pack("=Q", 1 << 40)], "its answer can't be read (ValueError)"),
        ([["value", None], struct.pack("=Q", 3) + b"{x}"], "its answer can't be read (JSONDecodeError)"),
        ([["value", None], struct.pack("=Q", 1 << 20) + b"[" * (1 << 15)], "gone"),
        ([["refused", "no"]], "OSError: no"),
    ],
)
def test_the_checker_fails_what_is_wrong_broken_or_gone(ends, replies, reason):
    assert judged(ends, *replies) == {"passed": False, "reason": reason}


def test_the_program_process_answers_calls_until_its_pipe_closes(ends, monkeypatch):
    monkeypatch.setattr(confine, "apply", lambda settings: None)
    monkeypatch.setattr(program.json, "load", lambda stream: {"packages": [], "program": "def f(x, y=0): return x + y"})
    monkeypatch.setattr(program.sys, "path", list(program.sys.path))
    wire.send(ends[1], ["f", [1], {"y": 2}])
    wire.send(ends[1], ["g", [], {}])
    os.close(ends[1])
    with pytest.raises(EOFError):
        program.main(ends[0], ends[3])
    assert [wire.receive(ends[2]) for _ in range(2)] == [["value", None], ["value", 3]]
    assert wire.receive(ends[2])[:2] == ["raise", "AttributeError"]
