"""Parts of an evaluation: disjoint, complete, and without influence on the result."""

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import files
from lib.evaluation import run, shard
from lib.evaluation.engine import Local
from tests import questions, tiny

SCRIPT = """
import sys
from lib.evaluation import run
from lib.evaluation.engine import Local
from tests import questions, tiny
found = run.evaluate(Local(tiny.llama(), budget=60), questions.task(questions.likelihoods(9)), cache=sys.argv[1])
print(sum(answer.logprob for row in found.rows for answer in row.answers).hex(), found.asked)
"""


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 5))
def test_parts_are_disjoint_and_together_all(count, number):
    samples = questions.task(questions.likelihoods(count, seed=count)).samples
    parts = [shard.split(samples, index, number) for index in range(number)]
    assert sorted(place for part in parts for place in part) == list(range(count))


def test_parts_are_balanced():
    samples = questions.task(questions.likelihoods(60)).samples
    sizes = [
        sum(len(samples[place].requests[0].context) for place in shard.split(samples, index, 4)) for index in range(4)
    ]
    assert max(sizes) < 1.3 * min(sizes)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("kind", ["likelihoods", "generations"])
def test_the_number_of_parts_changes_nothing(tmp_path, number, kind, capsys):
    task, local = questions.task(getattr(questions, kind)(9)), Local(tiny.llama(), budget=60, rows=2)
    whole = run.evaluate(local, task, cache=False)
    found = [run.evaluate(local, task, cache=tmp_path, part=(index, number)) for index in reversed(range(number))]
    assert found[:-1] == [None] * (number - 1)
    assert found[-1] == whole and found[-1].rows == whole.rows
    assert "are left to the other parts" in capsys.readouterr().out
    assert run.evaluate(local, task, cache=tmp_path).asked == 0


def test_wrong_parts():
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="0 <= index < number"):
            shard.own_part(part)


def test_launched_processes_exchange_their_answers(tmp_path):
    task = questions.task(questions.likelihoods(9))
    whole = run.evaluate(Local(tiny.llama(), budget=60), task, cache=False)
    expected = sum(answer.logprob for row in whole.rows for answer in row.answers).hex()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / str(rank))],  # folders apart, as on two machines
            env=os.environ | launched | {"RANK": str(rank), "PYTHONPATH": str(files.ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    values, asked = zip(*(out.split() for out, _ in answers))
    assert set(values) == {expected}
    assert sum(map(int, asked)) == 9 and min(map(int, asked)) > 0
