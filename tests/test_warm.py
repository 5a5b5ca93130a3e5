"""Forked interpreters behave as fresh ones do, so that tests may use them in their place."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

FRESH = sys.executable
TELLS = "import os, sys; print(sys.argv, os.getcwd(), os.environ['GIVEN'], sys.path, input(), __name__)"


@pytest.mark.parametrize("way", ["-c", "-P -c", "-m", "script"])
def test_it_sees_what_a_fresh_one_sees(way, forked_python, tmp_path):
    (tmp_path / "module_of_the_test.py").write_text(TELLS)
    (tmp_path / "elsewhere").mkdir()
    how = {"-m": ["-m", "module_of_the_test"], "script": [str(tmp_path / "module_of_the_test.py")]}
    arguments = how.get(way, [*way.split(), TELLS])
    said = []
    for python in (FRESH, forked_python):
        done = subprocess.run(
            [python, *arguments, "one", "two words é"], cwd=tmp_path, input="typed\n", capture_output=True, text=True,
            env={**os.environ, "GIVEN": "a value", "PYTHONPATH": str(tmp_path / "elsewhere")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.exit(3)", 3),
        ("raise ValueError('odd')", 1),
        ("import sys; sys.exit('words')", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
        ("import atexit; atexit.register(print, 'behind')", 0),
    ],
)
def test_it_ends_as_a_fresh_one_ends(code, status, forked_python):
    fresh, forked = [subprocess.run([each, "-c", code], capture_output=True) for each in (FRESH, forked_python)]
    assert fresh.returncode == forked.returncode == status and fresh.stdout == forked.stdout
    assert fresh.stderr.splitlines()[-1:] == forked.stderr.splitlines()[-1:]


def test_it_holds_nothing_of_this_repository_and_ends_with_who_started_it(forked_python):
    code = "import os, sys, time; print([n for n in sys.modules if n.split('.')[0] in ('lib', 'tests')], flush=True); "
    code += "print('torch' in sys.modules, os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen([forked_python, "-c", code], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "[]\n"
        loaded, number = running.stdout.readline().split()
        process = psutil.Process(int(number))
        assert loaded == "True" and process.is_running()
        os.kill(running.pid, signal.SIGKILL)
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_other_options_are_a_fresh_ones(forked_python):
    code = "import sys; print(sys.flags.isolated, 'torch' in sys.modules)"
    done = subprocess.run([forked_python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"
