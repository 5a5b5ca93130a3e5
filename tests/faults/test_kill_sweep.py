"""SIGKILL of a sweep: its workers and kernels end with it, and the next sweep resumes where it was."""

import os
import signal
import subprocess
import sys
import time

import psutil

from lib import files
from tests.batches import RECORDING, batch_file, notebook

WAITING = """import os, pathlib, time
marker = pathlib.Path(os.environ["THIMBLE_HOME"]) / "kernel.pid"
first = not marker.exists()
marker.write_text(str(os.getpid()))
time.sleep(600 if first else 0)"""


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def sweep(batch, home):
    command = [sys.executable, "-m", "lib.sweep", str(batch)]
    environment = os.environ | {"THIMBLE_HOME": str(home)}
    return subprocess.Popen(command, cwd=files.ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_sweep_takes_its_kernel_along_and_resumes(tmp_path):
    notebook(tmp_path, "first", RECORDING)
    notebook(tmp_path, "second", RECORDING, WAITING)
    batch = batch_file(tmp_path, "notebooks: [{notebook: first}, {notebook: second}]")
    killed = sweep(batch, tmp_path)
    marker = tmp_path / "kernel.pid"
    assert wait_until(lambda: marker.exists() and marker.read_text(), 900)
    kernel = psutil.Process(int(marker.read_text()))
    pids = [kernel.pid, kernel.ppid()]
    refused = sweep(batch, tmp_path)
    assert refused.wait(20) == 2  # the batch is locked while it runs
    refused.stdout.close()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert wait_until(lambda: all(map(is_gone, pids)), 900)
    outputs = tmp_path / "data" / "report" / "notebooks"
    assert (outputs / "first.ipynb").exists() and not (outputs / "second.ipynb").exists()

    record = (tmp_path / "data" / "results" / "first.json").read_bytes()
    resumed = sweep(batch, tmp_path)
    shown, _ = resumed.communicate(timeout=900)
    assert resumed.returncode == 0, shown
    assert "[1/2] first ... unchanged" in shown and "1 unchanged, 1 finished" in shown
    assert (tmp_path / "data" / "results" / "first.json").read_bytes() == record
    assert sorted(path.name for path in outputs.iterdir()) == ["first.ipynb", "second.ipynb"]
    left = [path.name for path in (tmp_path / "data").rglob(".*")]
    assert left == []
