"""Tests keep records, figures and checkpoints of their own, so that they never touch a user's."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

from tests import warm as warm_interpreters

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # "" where the tests run in one process
HOME = Path(__file__).resolve().parent.parent / "data" / "cache" / "tests" / WORKER

os.environ["THIMBLE_HOME"] = str(HOME)
if WORKER:
    # torch's threads wait for each other by spinning: more of them than cores make everything many times slower
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ["THIMBLE_QUIET"] = "1"
os.environ.pop("THIMBLE_RUN_ID", None)
# the checkpoint of the packaged model stays: converting it takes 20 s
shutil.rmtree(HOME / "data", ignore_errors=True)
HOME.mkdir(parents=True, exist_ok=True)
# by default hypothesis fails a test of which one example takes longer than 200 ms: the clock decides nothing here
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")
os.fsync = lambda handle: None  # a process that is killed loses nothing that the system has; no test cuts the current


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """One process more than there are cores: a quarter of the time a test waits, for another process or the disk."""
    return (os.cpu_count() or 1) + 1


# the files that take longest: where several processes share the files, one that began last would keep the others idle
LONGEST = (
    *("test_notebooks_models", "test_family_methods", "test_against_lm_eval", "test_real", "test_degenerate"),
    *("test_packed_configurations", "test_resume_quantizing", "test_family_healing", "test_bootstrap", "test_sandbox"),
    *("test_family_saving", "test_family_answers", "test_site"),
)


def pytest_collection_modifyitems(items):
    """Begin with the longest files; the others keep their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


_frozen = 0  # modules that were loaded when the collector was last told to leave them alone


@pytest.fixture(autouse=True)
def nothing_imported_is_garbage():
    """Take what is loaded by now out of the collector's sight: every training ends in a full collection, and one over
    all objects of torch and transformers takes longer than the training of a tiny model.

    Again before each test once a test has imported more: much is imported only where it is needed.
    """
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture
def one_thread():
    """torch with one thread: what two processes make of the same job is alike to the last bit only so."""
    import torch  # not before OMP_NUM_THREADS stands

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def forked_python():
    """A program that does what the interpreter does, in processes that have torch and transformers from the start."""
    with tempfile.TemporaryDirectory(prefix="thimble-") as folder:
        program, server = warm_interpreters.command(Path(folder))
        yield str(program)
        server.stdin.close()
        server.wait()


@pytest.fixture
def warm(forked_python, monkeypatch):
    """Whatever starts Python by `sys.executable` gets a forked process: for tests of what it then does."""
    monkeypatch.setattr(sys, "executable", forked_python)
