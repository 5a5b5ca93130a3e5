"""The same stages by one process, by datatrove's workers and on Ray: the same bytes, also after a kill."""

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lib import files
from lib.curation import engines, pipeline, sources
from lib.curation.document import Document

STAGES = [
    "exact",
    ("lines", {"shortest": 10}),
    ("gopher", {"limits": {"words": (5, 1000)}}),
    ("fuzzy", {"threshold": 0.7}),
]


SLOW = """
import time

def stage(documents, *, tally):
    for each in documents:
        time.sleep(0.05)
        yield tally.keep(each)
"""
RUN = """
from lib.curation import engines, pipeline

if __name__ == "__main__":
    pipeline.run({}, {}, {}, seed=1, engine=engines.Local(2))
"""


def corpus(count=60):
    draw, found = random.Random(0), []
    for number in range(count):
        words = [
            draw.choice(("the river", "of stone", "a window", "that garden", "letter", "winter")) for _ in range(30)
        ]
        found.append(Document(f"{' '.join(words)}\nAll rights reserved by us.\n{number}", f"page-{number}"))
        if number % 5 == 0:
            found.append(Document(found[-1].text + " more", f"copy-{number}"))
    return found


def written(folder):
    """{name: content} of all that stages leave, what workers report aside."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "job.json"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(Shards, the result of one process, what it wrote)"""
    folder = tmp_path_factory.mktemp("a corpus é")
    shards = sources.write(corpus(), folder / "in", 5)
    result = pipeline.run(shards, STAGES, folder / "out", seed=1)
    assert 20 < len(list(result.documents)) < 72
    return shards, result, written(folder / "out")


def backwards(step, numbers):
    for number in reversed(numbers):
        step(number)


def one_too_few(step, numbers):
    backwards(step, numbers[1:] if step.name == "lines" else numbers)


def test_shards_come_in_any_order_and_one_that_is_missing_is_named(alone, tmp_path):
    shards, result, content = alone
    other = pipeline.run(shards, STAGES, tmp_path / "out", seed=1, engine=backwards)
    assert written(tmp_path / "out") == content and other.table == result.table
    with pytest.raises(RuntimeError, match="lines left 1 of 5 shards undone, the first is 00000"):
        pipeline.run(shards, STAGES, tmp_path / "lost", seed=1, engine=one_too_few)
    assert pipeline.run(shards, STAGES, tmp_path / "lost", seed=1).sha256 == result.sha256
    assert written(tmp_path / "lost") == content
    for made in (engines.Local(0), engines.Local(True)):
        with pytest.raises(ValueError, match="one for each core is usual"):
            made(None, [0])


@pytest.mark.long
@pytest.mark.parametrize("name", ["Local", "Ray"])
def test_two_workers_leave_the_same_documents(alone, tmp_path, name):
    if name == "Ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is no requirement: pip install ray==2.60.0")
    shards, result, content = alone
    made = getattr(engines, name)(workers=2)
    assert pipeline.run(shards, STAGES, tmp_path / "out é", seed=1, engine=made).sha256 == result.sha256
    assert written(tmp_path / "out é") == content
    if name == "Ray":
        import ray

        ray.shutdown()


@pytest.mark.long
def test_killed_and_run_again_it_ends_in_the_same_bytes(alone, tmp_path):
    shards, result, _ = alone
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    stages = [str(slow), *STAGES]
    given = [str(path) for path in shards.paths], stages, str(tmp_path / "out")
    code = RUN.format(*map(repr, given))
    (tmp_path / "run.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    running = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env=environment, start_new_session=True)
    while not list((tmp_path / "out" / "slow").glob("*.tally.json")):
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    with contextlib.suppress(ProcessLookupError):  # until its workers have ended too, which hold the folder
        while os.killpg(running.pid, 0) is None:
            time.sleep(0.05)
    assert len(list((tmp_path / "out").glob("*/*.jsonl"))) < 5 * len(stages)
    again = pipeline.run(shards, stages, tmp_path / "out", seed=1, engine=engines.Local(2))
    whole = pipeline.run(shards, stages, tmp_path / "whole", seed=1)
    assert again.sha256 == whole.sha256 == result.sha256 and written(tmp_path / "out") == written(tmp_path / "whole")
