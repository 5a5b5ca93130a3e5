"""The sandbox: honest programs pass, wrong ones fail, and every way out or to a false success that we know is shut."""

import functools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from lib.metrics import sandbox
from lib.metrics.jail import confine
from lib.metrics.sandbox import Limits

isolated = pytest.mark.skipif(confine.missing() is not None, reason=f"no isolation: {confine.missing()}")
pytestmark = isolated
HUMANEVAL = Path(os.environ.get("THIMBLE_DATA", "")) / "humaneval" / "HumanEval.jsonl"
SECRET = "def check(candidate):\n    assert candidate() == 'expected-' + 'a81f'\n"
run = functools.partial(sandbox.run, allow_execution=True)


def attack(program: str, test: str = SECRET, **limits):
    return run(
        program, test, "f", limits=Limits(**({"cpu_seconds": 1, "wall_seconds": 120, "memory_bytes": 1 << 28} | limits))
    )


def test_right_passes_and_wrong_fails_with_the_line_that_tells():
    test = "def check(candidate):\n    assert candidate(2) == [4, (2, None)]\n"
    assert run("def f(x):\n    return [x * x, (x, None)]", test, "f") == sandbox.Verdict(True, "", "")
    wrong = run("print('hello')\ndef f(x):\n    return [x * x, [x, None]]", test, "f")
    assert not wrong.passed and wrong.output == "hello\n"
    assert wrong.reason == "AssertionError at: assert candidate(2) == [4, (2, None)]"


def test_tests_may_assert_at_top_level_expect_exceptions_and_use_helpers_of_the_prompt():
    test = "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'below 0'\n"
    test += "assert double(f(4)) == 4.0\n"
    prompt = "def double(x):\n    return 2 * x\n"
    program = (
        "def double(x):\n    return 4.0\ndef f(x):\n    if x < 0:\n        raise ValueError('below 0')\n    return {}"
    )
    assert run(program.format("x ** 0.5"), test, "f", preamble=prompt).passed
    expected = run(program.format("x"), test, "f", preamble=prompt)
    assert expected.reason == "AssertionError at: assert double(f(4)) == 4.0"  # the program's own double is not asked
    unclear = "def f(x):\n    raise type('Odd', (Exception,), {})(x)"
    assert run(unclear, "f(1)", "f").reason == "Odd: 1 at: f(1)"


def test_programs_that_do_not_run_fail_with_their_error():
    assert run("def f(:", "assert f() == 1", "f").reason.startswith("SyntaxError")
    assert run("x = 1", "assert f() == 1", "f").reason.startswith("AttributeError")
    assert run("import absent_package", "assert True", "f").reason.startswith("ModuleNotFoundError")
    assert run("def f(x): return x", "assert f(lambda: 1)", "f").passed  # arrives as an object, is returned as one


def test_numpy_is_there_and_its_scalars_arrive_as_numbers():
    assert run("import numpy\ndef f(x):\n    return numpy.sum(x)", "assert f([1, 2]) == 3", "f").passed


ESCAPES = {
    "leaves with success": "import sys\nsys.exit(0)",
    "leaves in the call": "import sys\ndef f():\n    sys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves at once in the call": "import os\ndef f():\n    os._exit(0)",
    "interrupts": "def f():\n    raise KeyboardInterrupt",
    "forks": "import os\nwhile True:\n    os.fork()",
    "starts a process": "import subprocess\ndef f():\n    return subprocess.run(['/bin/true'])",
    "starts a thread": "import threading\nthreading.Thread(target=print).start()",
    "becomes another program": "import os\nos.execv('/bin/true', ['true'])",
    "asks for 10 GB": "x = bytearray(10 << 30)\ndef f():\n    return x",
    "recurses without end": "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    return f()",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills everybody": "import os\nos.kill(-1, 9)",
    "kills its group": "import os\nos.killpg(0, 9)",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "opens a socket": "import socket\nsocket.socketpair()",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "traces": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "reads its memory": "open('/proc/self/mem', 'rb')",
    "lists processes": "import os\nos.listdir('/proc')",
    "reads the password file": "open('/etc/passwd')",
    "links": "import os\nos.symlink('/', 'root')",
    "makes a folder": "import os\nos.mkdir('x')",
    "changes rights": "import os\nos.chmod('.', 0o777)",
    "equals everything": "class E:\n    __eq__ = lambda *_: True\ndef f():\n    return E()",
    "is a text that equals everything": "class E(str):\n    __eq__ = lambda *_: True\ndef f():\n    return E('x')",
    "answers too much": "def f():\n    return 'x' * (1 << 27)",
    "answers without end": "import itertools\ndef f():\n    return itertools.count()",
    "answers itself": "x = []\nx.append(x)\ndef f():\n    return x",
    "closes everything": "import os\nos.closerange(0, 64)",
}


@pytest.mark.parametrize("program", ESCAPES.values(), ids=ESCAPES)
def test_escapes_are_contained_and_fail(program):
    verdict = attack(program)
    assert not verdict.passed and verdict.reason


@pytest.mark.parametrize("where", ["while True:\n    pass", "def f():\n    while True:\n        pass"])
def test_infinite_loops_end_by_cpu_time(where):
    assert attack(where).reason == "used more than 1 s of CPU time"


def test_a_loop_that_ignores_the_signal_of_the_limit_is_killed():
    program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass"
    assert attack(program).reason == "the program was ended by SIGKILL"


def test_sleepers_floods_and_full_disks_end():
    assert attack("import time\ntime.sleep(1000)", wall_seconds=1.0).reason == "took longer than 1 s"
    assert attack("while True:\n    print('x' * 9999)").reason == "printed more than 1,048,576 bytes"
    many = "for i in range(10**6):\n    with open(str(i % 9000), 'w') as file:\n        file.write('x')"
    assert attack(many, cpu_seconds=5).reason == "wrote more than 16,777,216 bytes"
    assert attack("open('big', 'wb').write(bytes(1 << 25))").reason.startswith("OSError: [Errno 27]")


def test_files_outside_can_be_neither_read_nor_changed_nor_deleted(tmp_path):
    kept = tmp_path / "answers.txt"
    kept.write_text("expected-a81f")
    folder = tmp_path / "folder"
    folder.mkdir()
    for action in (
        f"open({str(kept)!r}, 'w')",
        f"os.remove({str(kept)!r})",
        f"os.rmdir({str(folder)!r})",
        f"os.rename({str(kept)!r}, 'x')",
        f"os.truncate({str(kept)!r}, 0)",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"shutil.rmtree({str(tmp_path)!r})",
    ):
        assert not attack(f"import os, shutil\n{action}").passed
    assert not attack(f"def f():\n    return open({str(kept)!r}).read()").passed
    assert kept.read_text() == "expected-a81f" and folder.exists() and len(list(tmp_path.iterdir())) == 2


def test_the_folder_is_empty_and_can_hold_files_until_the_end():
    program = "import os\ndef f():\n    before = os.listdir('.')\n    open('a', 'w').write('x')\n"
    program += "    return before, open('a').read()"
    assert run(program, "assert f() == ([], 'x')", "f").passed
    where = run("import os\nprint(os.getcwd())\ndef f(): return 1", "assert f() == 1", "f").output.strip()
    assert where and not os.path.exists(where)


SEARCH = """
import gc, re, sys
def f():
    seen, frame = [sys.argv], sys._getframe()
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    seen += gc.get_objects() + [dict(vars(module)) for module in list(sys.modules.values())]
    found = [re.search("expected-[0-9a-f]{4}", repr(each)) for each in seen]
    return next((match[0] for match in found if match), "nothing")
"""


def test_nothing_in_the_process_holds_the_expected_answer():
    verdict = attack(SEARCH, cpu_seconds=10)
    assert not verdict.passed and verdict.reason.startswith("AssertionError")
    planted = "planted = ['expected-' + 'a81f']\n"
    assert attack(planted + SEARCH, cpu_seconds=10).passed  # the search finds what is there


def test_forged_verdicts_and_patched_checks_change_nothing():
    forged = '{"passed": true, "reason": ""}'
    writes = f"""
import builtins, json, os, struct, sys
text = {forged!r}.encode()
for handle in range(3, 64):
    for message in (text, struct.pack("=Q", len(text)) + text):
        try:
            os.write(handle, message)
        except OSError:
            pass
def f():
    return "nothing"
"""
    assert not attack(writes).passed
    patches = """
import builtins, sys
builtins.AssertionError = Warning
for module in list(sys.modules.values()):
    for name in ("encode", "judge", "check", "_reason"):
        if hasattr(module, name):
            setattr(module, name, lambda *_: ["value", True])
def f():
    return True
"""
    assert not attack(patches).passed
    caught = "def check(candidate):\n    try:\n        candidate()\n    except Exception:\n        pass\n"
    assert not attack("import os\ndef f():\n    os._exit(0)", caught).passed  # though its test forgives exceptions


def test_nothing_is_left_behind():
    before = set(psutil.Process().children(recursive=True))
    attack("import os\nos.closerange(0, 64)\nwhile True:\n    pass")
    assert set(psutil.Process().children(recursive=True)) <= before


def test_verdicts_are_the_same_under_four_times_the_load():
    spin = "sum(range(10**6))\n" * 10
    programs = [f"def f():\n    {text}" for text in ("return 'expected-a81f'", "return 1", "while True: pass")]
    programs.append(spin + "def f():\n    return 'expected-a81f'")
    quiet = [attack(program).reason for program in programs]
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-1:])  # one core, for what is started here too: four times its load
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        loaded = [attack(program).reason for program in programs]
    finally:
        os.sched_setaffinity(0, allowed)
        for process in busy:
            process.kill()
            process.wait()
    assert loaded == quiet and quiet[0] == quiet[3] == "" and quiet[2] == "used more than 1 s of CPU time"


@pytest.mark.skipif(not (os.environ.get("THIMBLE_DATA") and HUMANEVAL.exists()), reason="set THIMBLE_DATA (humaneval)")
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.long)])
def test_canonical_solutions_pass_and_stubs_fail(every):
    whole = [json.loads(line) for line in HUMANEVAL.read_text().splitlines()]
    rows = whole[::every]

    def judge(row, body):
        return run(row["prompt"] + body, row["test"], row["entry_point"], preamble=row["prompt"]).passed

    with ThreadPoolExecutor(4) as pool:
        right = list(pool.map(lambda row: judge(row, row["canonical_solution"]), rows))
        stubs = list(pool.map(lambda row: judge(row, "    return None\n"), whole[:: 8 * every]))
    assert len(whole) == 164 and all(right) and not any(stubs)
