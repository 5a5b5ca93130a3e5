"""The sweep: what runs in which order, what is skipped, how failures end; a stub stands in for the workers."""

import json
import os
import re
import signal
import sys
import threading
import time

import nbformat
import psutil
import pytest

from lib import files, sweep
from lib.batches import outcomes, worker
from lib.report import chapters, site
from tests.batches import batch_file, notebook

# stands in for a worker: copies the notebook, writes a record and a line of who runs when; `x` decides what goes wrong
STUB = """
import json, os, sys, time
job = json.loads(sys.stdin.readline())
name, home, x = os.environ["THIMBLE_RUN_ID"], os.environ["THIMBLE_HOME"], job["parameters"].get("x", 1)
with open(home + "/log", "a") as log:
    log.write(f"start {name} {os.environ.get('OMP_NUM_THREADS')}\\n")
if x == 66: sys.exit("ValueError: no good")
if x == 77: time.sleep(60)
if x == 88: os.kill(os.getpid(), 9)
time.sleep(0.15)
with open(home + "/spins", "a") as spins:
    spins.write(f"{os.environ.get('GOMP_SPINCOUNT')} {os.environ.get('OMP_WAIT_POLICY')}\\n")
document = json.load(open(job["notebook"]))
document["metadata"]["papermill"] = {"input_path": job["notebook"], "output_path": job["output"]}
json.dump(document, open(job["output"], "w"))
os.makedirs(home + "/data/results", exist_ok=True)
record = dict(run=name, notebook="a", status="running", started=str(time.time()), parameters={}, seed=0)
record |= dict(machine={}, threads=1, versions={}, rows=[], inputs=[])
json.dump(record, open(f"{home}/data/results/{name}.json", "w"))
with open(home + "/log", "a") as log:
    log.write(f"end {name}\\n")
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    notebook(tmp_path, "a", "print(x)")
    notebook(tmp_path, "report", "print('report')")
    return tmp_path


@pytest.fixture
def stub(home, monkeypatch):
    (home / "stub.py").write_text(STUB)
    monkeypatch.setattr(worker, "COMMAND", [sys.executable, "-S", str(home / "stub.py")])
    return home


def log(home):
    return (home / "log").read_text().split("\n")[:-1] if (home / "log").exists() else []


def statuses(found):
    return [outcome.status for outcome in found]


def test_runs_go_in_order_one_at_a_time(stub):
    found = sweep.sweep(batch_file(stub, "notebooks: [{notebook: a, grid: {x: [3, 2]}}, {notebook: report}]"))
    assert statuses(found) == ["finished"] * 3
    expected = [f"{what} {name}" for name in ("a-x=3", "a-x=2", "report") for what in ("start", "end")]
    assert [line.removesuffix(" None") for line in log(stub)] == expected
    kept = sorted(path.name for path in (stub / "data/report/notebooks").iterdir())
    assert kept == ["a-x=2.ipynb", "a-x=3.ipynb", "report.ipynb"]
    assert str(stub) not in (stub / "data/report/notebooks/report.ipynb").read_text()
    assert json.loads((stub / "data/results/a-x=2.json").read_text())["status"] == "finished"


def test_finished_runs_are_skipped_until_something_changes(stub):
    batch = batch_file(stub, "notebooks: [{notebook: a, grid: {x: [2, 3]}}, {notebook: report}]")
    sweep.sweep(batch)
    assert statuses(sweep.sweep(batch)) == ["unchanged"] * 3
    other = batch_file(stub, "notebooks: [{notebook: a, parameters: {x: 2}}]", name="other")
    assert statuses(sweep.sweep(other)) == ["unchanged"]  # batches share what is finished
    notebook(stub, "a", "print(x + 1)")
    found = sweep.sweep(batch)
    assert statuses(found) == ["finished", "finished", "unchanged"]
    assert found[0].reason == "notebook code changed"
    (stub / "data/report/notebooks/report.ipynb").unlink()
    assert statuses(sweep.sweep(batch)) == ["unchanged", "unchanged", "finished"]
    assert statuses(sweep.sweep(batch, fresh=True)) == ["finished"] * 3


def test_the_report_waits_for_all_and_follows_the_records(stub):
    text = "notebooks: [{notebook: a, grid: {x: [2, 3]}}, {notebook: report, after: all}]"
    batch = batch_file(stub, text)
    sweep.sweep(batch, workers=3)
    assert log(stub)[-2].startswith("start report") and log(stub)[-3].startswith("end a")
    assert statuses(sweep.sweep(batch, workers=3)) == ["unchanged"] * 3
    (stub / "data/results/a-x=3.json").unlink()
    assert statuses(sweep.sweep(batch, workers=3)) == ["unchanged", "finished", "finished"]


def test_workers_run_at_once_and_share_the_cores(stub, monkeypatch):
    monkeypatch.setattr(sweep.machine, "cores", lambda: 8)
    sweep.sweep(batch_file(stub, "notebooks: [{notebook: a, grid: {x: [2, 3]}}]"), workers=2)
    assert sorted(log(stub)[:2]) == ["start a-x=2 4", "start a-x=3 4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sweep.sweep(batch_file(stub, "notebooks: [{notebook: a, grid: {x: [4, 5]}}]"), workers=2)
    assert "start a-x=4 1" in log(stub)  # what the user has set stays


def test_waiting_threads_let_go_of_their_cores(stub, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    batch = batch_file(stub, "notebooks: [{notebook: a}]")
    sweep.sweep(batch)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # what the user has set stays
    (stub / "data/results/a.json").unlink()
    sweep.sweep(batch)
    assert (stub / "spins").read_text().split("\n")[:-1] == ["10000 None", "None active"]


def test_failures_are_kept_and_the_others_go_on(stub, capsys):
    entries = "{notebook: a, grid: {x: [2, 66, 88]}}, {notebook: a, parameters: {x: 77}, timeout: 1}"
    entries += ", {notebook: report, after: all}"
    batch = batch_file(stub, f"notebooks: [{entries}]")
    assert sweep.main([str(batch)]) == 1
    shown = capsys.readouterr().out
    assert "[2/5] a x=66 ... FAILED after" in shown and "2 finished, 3 failed" in shown
    assert "ValueError: no good" in shown and "TimeoutError: stopped after 1 s" in shown and "status -9" in shown
    for x, ename in ((66, "ValueError"), (77, "TimeoutError"), (88, "ChildProcessError")):
        kept = nbformat.read(stub / f"data/report/notebooks/a-x={x}.failed.ipynb", 4)
        nbformat.validate(kept)
        assert kept.cells[0].outputs[0].ename == ename
    assert sweep.main([str(batch)]) == 1  # what failed runs again, what finished does not
    assert "[1/5] a x=2 ... unchanged" in capsys.readouterr().out


def test_a_report_after_failures_says_what_failed_and_shows_the_rest(stub, monkeypatch, capsys):
    monkeypatch.setattr(chapters, "FIGURES", {site.LEADING: chapters.FIGURES[site.LEADING]})
    assert sweep.main([str(batch_file(stub, "notebooks: [{notebook: a, grid: {x: [2, 66, 88]}}]"))]) == 1
    shown = capsys.readouterr().out  # what each run cost, and the longest, whatever became of them
    for run, status in (("a x=2", "finished"), ("a x=66", "failed"), ("a x=88", "failed")):
        assert re.search(rf"^{run} +{status} +\d+\.\d", shown, re.M)
    assert re.search(r"^\d+\.\d minutes in all; the longest is a x=\d+ with \d+ s$", shown, re.M)
    page = site.build().read_text()
    parts = re.findall(r'<section class="failure">(.*?)</section>', page, re.S)
    assert "2 notebooks failed" in page and len(parts) == 2
    for part, name, sentence in zip(parts, ("a-x=66", "a-x=88"), ("ValueError: no good", "with status -9")):
        assert f">{name}</a>" in part and sentence in part and "<pre>x = 1</pre>" in part
    assert ">a-x=2</a>" in (files.report() / "chapter-other.html").read_text()


def test_success_removes_the_failed_notebook_and_failure_the_old_results(stub):
    batch = batch_file(stub, "notebooks: [{notebook: a, parameters: {x: 2}}]")
    sweep.sweep(batch)
    folder, record = stub / "data/report/notebooks", stub / "data/results/a-x=2.json"
    script = stub / "stub.py"
    script.write_text("import sys; sys.exit('ValueError: x')")
    assert statuses(sweep.sweep(batch, fresh=True)) == ["failed"]
    assert [path.name for path in folder.iterdir()] == ["a-x=2.failed.ipynb"] and not record.exists()
    script.write_text(STUB)
    assert statuses(sweep.sweep(batch)) == ["finished"]
    assert [path.name for path in folder.iterdir()] == ["a-x=2.ipynb"] and record.exists()


def test_a_notebook_broken_during_the_sweep_fails_alone(stub):
    path = notebook(stub, "late", "print(1)")
    breaking = f"open({str(path)!r}, 'w').write('no notebook')\n"
    (stub / "stub.py").write_text(STUB + breaking)
    found = sweep.sweep(batch_file(stub, "notebooks: [{notebook: a}, {notebook: late}, {notebook: report}]"))
    assert statuses(found) == ["finished", "failed", "finished"] and "late.ipynb is not a notebook" in found[1].error
    kept = nbformat.read(stub / "data/report/notebooks/late.failed.ipynb", 4)  # so that the report tells of it
    nbformat.validate(kept)
    assert "late.ipynb is not a notebook" in kept.cells[0].outputs[0].evalue


def test_nothing_runs_where_outputs_cannot_be_written(stub, monkeypatch, capsys):
    batch = batch_file(stub, "notebooks: [{notebook: a}]")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert sweep.main([str(batch)]) == 2
    assert "free some space" in capsys.readouterr().err
    (stub / "file").write_text("")
    monkeypatch.setenv("THIMBLE_HOME", str(stub / "file"))
    assert sweep.main([str(batch)]) == 2
    assert "cannot be written" in capsys.readouterr().err and not log(stub)


def test_wrong_batches_and_workers_exit_with_2(stub, capsys):
    batch = batch_file(stub, "notebooks: [{notebook: a, parameters: {y: 3}}]")
    assert sweep.main([str(batch)]) == 2
    assert "parameter 'y'" in capsys.readouterr().err
    assert sweep.main([str(batch.with_name("no.yaml"))]) == 2
    assert sweep.main([str(batch), "--workers", "0"]) == 2 and not log(stub)


def test_two_sweeps_of_one_batch_exclude_each_other_and_other_batches_run(stub, capsys):
    batch = batch_file(stub, "notebooks: [{notebook: a, parameters: {x: 2}}]")
    other = batch_file(stub, "notebooks: [{notebook: a, parameters: {x: 3}}]", name="other")
    with sweep._lock(files.cache() / "sweep" / "tiny" / "lock", "tiny.yaml"):
        assert sweep.main([str(batch)]) == 2
        assert "a sweep of tiny.yaml is already running" in capsys.readouterr().err
        assert sweep.main([str(other)]) == 0
    assert sweep.main([str(batch)]) == 0


@pytest.fixture
def interruptible():
    """A test run that a shell has put into the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_stops_the_children_and_exits_with_130(stub, capsys, interruptible):
    batch = batch_file(stub, "notebooks: [{notebook: a, grid: {x: [2, 77, 3]}}]")

    def interrupt():
        deadline = time.monotonic() + 600
        while "start a-x=77 None" not in log(stub) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert sweep.main([str(batch)]) == 130
    assert "1 finished, 1 interrupted, 1 not run" in capsys.readouterr().out
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if str(stub / "stub.py") in (p.info["cmdline"] or [])]
    assert [path.name for path in (stub / "data/report/notebooks").iterdir()] == ["a-x=2.ipynb"]


def test_halves_of_a_killed_sweep_are_removed(stub):
    halves = ["report/notebooks/.a.part.ipynb", "results/.a.json.1f.tmp", "cache/sweep/runs/.a.json.2e.tmp"]
    for half in halves:
        files.write_text(stub / "data" / half, "half")
    files.write_text(stub / "data/results/.b.json.3d.tmp", "another batch's")
    sweep.sweep(batch_file(stub, "notebooks: [{notebook: a}]"))
    assert [half for half in halves if (stub / "data" / half).exists()] == []
    assert (stub / "data/results/.b.json.3d.tmp").exists()


def test_a_terminal_gets_a_bar_that_names_what_runs(stub, monkeypatch, capsys):
    monkeypatch.setattr(outcomes.sys.stderr, "isatty", lambda: True, raising=False)
    sweep.sweep(batch_file(stub, "notebooks: [{notebook: a, parameters: {x: 2}}, {notebook: report}]"))
    shown = capsys.readouterr()
    assert "a x=2" in shown.err and "2/2" in shown.err and "[1/2] a x=2 ... 0 s" in shown.out
