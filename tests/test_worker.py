"""Notebooks with real kernels: they run with this interpreter, and end completely when they fail, hang or die."""

import io
import json
import os
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from lib import files, results, sweep
from lib.batches import worker
from tests.batches import RECORDING, batch_file, notebook


class Clock:
    """A clock that leaps by eleven days once the notebook hangs: how fast this machine is decides nothing."""

    def __init__(self, hanging):
        self.hanging, self.sleep = hanging, time.sleep

    def monotonic(self):
        return time.monotonic() + 1e6 * self.hanging.exists()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Notebooks that record, raise, lose their kernel and hang, swept once with papermill."""
    home = tmp_path_factory.mktemp("real")
    notebook(
        home, "good", RECORDING, "import os, sys; print(sys.executable, os.getcwd(), y)", parameters="x = 1\ny = ''"
    )
    notebook(home, "raises", "print('before')", "raise ValueError('on purpose')", "print('never')")
    notebook(home, "dies", "print('before')", "import os; os._exit(3)", "print('never')")
    hang = f"import pathlib, time; pathlib.Path({str(home / 'hanging')!r}).touch(); time.sleep(600)"
    notebook(home, "hangs", "import os; print(os.getpid(), flush=True)", hang, "print('never')")
    batch = batch_file(
        home,
        """
timeout: 1.0e+9
notebooks:
  - {notebook: good, parameters: {x: 7, y: "quotes ' and \\" stay"}}
  - notebook: raises
  - notebook: dies
  - {notebook: hangs, timeout: 100000}
""",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THIMBLE_HOME", str(home))
        patch.setattr(sweep, "time", Clock(home / "hanging"))
        found = {outcome.run.notebook.stem: outcome for outcome in sweep.sweep(batch, workers=2)}
    return home, found


def executed(home, name):
    return nbformat.read(home / "data/report/notebooks" / f"{name}.ipynb", 4)


def test_a_notebook_runs_with_this_interpreter_in_its_folder_and_records(ended, monkeypatch):
    home, found = ended
    assert found["good"].status == "finished"
    document = executed(home, found["good"].run.name)
    printed = document.cells[-1].outputs[0].text
    assert printed == f"{sys.executable} {home / 'notebooks'} quotes ' and \" stay\n"
    monkeypatch.setenv("THIMBLE_HOME", str(home))
    row = results.table().iloc[0]
    assert (row["value"], row["x"], row["status"], row["run"]) == (49.0, 7, "finished", found["good"].run.name)


@pytest.mark.parametrize(
    ("name", "message", "cell"),
    [
        ("raises", "ValueError: on purpose", "raise ValueError"),
        ("dies", "DeadKernelError: Kernel died", "os._exit"),
        ("hangs", "TimeoutError: stopped after 100000 s", "sleep(600)"),
    ],
)
def test_a_failed_notebook_is_kept_with_its_error_cell(ended, name, message, cell):
    home, found = ended
    assert found[name].status == "failed" and message in found[name].error
    document = executed(home, f"{name}.failed")
    nbformat.validate(document)
    (failed,) = [
        c for c in document.cells if c.cell_type == "code" and any(o.output_type == "error" for o in c.outputs)
    ]
    assert cell in failed.source
    assert not (home / f"data/report/notebooks/{name}.ipynb").exists()


def test_a_hanging_kernel_is_gone_after_the_timeout(ended):
    home, _ = ended
    outputs = [c.outputs for c in executed(home, "hangs.failed").cells if "getpid" in c.source]
    pid = int(outputs[0][0].text)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("cell", "status", "message"), [("print(x)", 0, ""), ("undefined", 1, "NameError: name")])
def test_the_process_takes_its_job_from_standard_input(tmp_path, monkeypatch, capsys, cell, status, message):
    """In this very process, with the kernel that the environment offers."""
    monkeypatch.setattr(worker, "_follow_sweep", lambda: None)
    output = tmp_path / "out.ipynb"
    job = dict(notebook=str(notebook(tmp_path, "a", cell)), output=str(output), parameters=dict(x=5))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job) + "\n"))
    assert worker.main() == status
    assert message in capsys.readouterr().err
    assert status or nbformat.read(output, 4).cells[-1].outputs[0].text == "5\n"


def test_the_end_of_the_pipe_ends_the_process_and_what_it_started(tmp_path):
    """The sweep's end of the pipe closes however the sweep ends; here a child of the worker would go on for long."""
    code = "import subprocess, sys, threading; from lib.batches import worker; "
    code += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    code += "print(child.pid, flush=True); worker._follow_sweep()"
    environment = os.environ | {worker.MARK: f"test-{os.getpid()}"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=files.ROOT, env=environment, **pipes)
    child = psutil.Process(int(process.stdout.readline()))
    assert child.is_running() and process.poll() is None
    process.stdin.close()
    assert process.wait(20) == 1
    process.stdout.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_paths_and_kernels_hold_in_the_notebooks_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, given in (
        ("THIMBLE_HOME", "home"),
        ("THIMBLE_DATA", "~/texts"),
        ("THIMBLE_ANSWERS", "a"),
        ("PYTHONPATH", "mine"),
    ):
        monkeypatch.setenv(name, given)
    monkeypatch.setenv("HOME", "/somewhere")
    made = worker._environment(tmp_path / "kernels")
    assert made["THIMBLE_HOME"] == str(tmp_path / "home") and made["THIMBLE_DATA"] == "/somewhere/texts"
    assert made["THIMBLE_ANSWERS"] == str(tmp_path / "a")
    assert made["PYTHONPATH"].split(os.pathsep) == [str(files.ROOT), "mine"]
    assert made["JUPYTER_PATH"].split(os.pathsep)[0] == str(tmp_path / "kernels")
