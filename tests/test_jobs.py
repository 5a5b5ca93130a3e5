"""What a state says of its job: arguments, code, versions, threads and device; the refusal names what differs."""

import fcntl
import gc
import json
import shutil
import threading

import pytest
import torch

from lib import files, jobs, timing
from lib.jobs import JobState, fingerprint, same_job, same_study
from lib.pruners import greedy
from lib.quantizers import awq, embedding, gptq, rtn, sensitivity
from lib.quantizers.time_budget import JobLog
from lib.trainers import loop, next_token
from tests import tiny

GRID = {"bits": 3, "group_size": 32}
OTHER = "lib/quantizers " + "5eed" * 16  # what `code` says of files that differ
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny.llama()


OPENED = {
    "state": lambda folder, model: JobState(folder, **fingerprint(model, tiny.tokens()), **GRID),
    "plan": lambda folder, model: JobLog(folder, timing.clock(), model, tiny.tokens(), **GRID).note(),
}


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize("changed", ["code", "threads", "torch"])
def test_other_circumstances_are_refused_and_the_same_are_not(tmp_path, model, monkeypatch, kind, changed):
    digits = jobs.code("quantizers").split()[1][:12]
    OPENED[kind](tmp_path, model)
    OPENED[kind](tmp_path, model)
    if changed == "code":
        monkeypatch.setattr(jobs, "code", lambda _: OTHER)
        named = rf"\(code=lib/quantizers {digits} there, lib/quantizers 5eed5eed5eed here\); .* or a new folder\.$"
    elif changed == "threads":
        torch.set_num_threads(3)
        named = r"\(threads=1 there, 3 here\); .* or a new folder, and torch\.set_num_threads\(1\)\.$"
    else:
        monkeypatch.setattr(torch, "__version__", "1.0")
        named = r"\(torch=.* there, 1\.0 here\); use the same arguments or a new folder\.$"
    with pytest.raises(ValueError, match=named):
        OPENED[kind](tmp_path, model)


def test_the_device_is_the_one_that_does_the_work(tmp_path, model):
    there, here = fingerprint(model, tiny.tokens()), fingerprint(model, tiny.tokens(), "cuda:0")
    assert there["device"] == "cpu" and here == there | {"device": "cuda"}
    assert fingerprint(model) == {name: there[name] for name in ("model", "layers", "device")}
    other = tiny.llama(rms_norm_eps=0.3)  # of the same weights, and another model
    assert {name for name in there if fingerprint(other, tiny.tokens())[name] != there[name]} == {"layers"}
    JobState(tmp_path, **there)
    with pytest.raises(ValueError, match=r"\(device=cpu there, cuda here\)"):
        JobState(tmp_path, **here)


def test_a_walk_begun_with_other_code_is_not_gone_on_with(tmp_path, monkeypatch):
    gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(jobs, "code", lambda _: OTHER)
    with pytest.raises(ValueError, match=r"code=lib/quantizers .* there, lib/quantizers 5eed5eed5eed here"):
        gptq.quantize_(tiny.llama(), tiny.tokens(), **GRID, state=tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_folder_that_says_nothing_of_its_code_is_refused(tmp_path, model):
    OPENED["state"](tmp_path, model)
    note = tmp_path / "job.json"
    older = {key: value for key, value in json.loads(note.read_text()).items() if key not in ("code", "threads")}
    note.write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"code=None there, lib/quantizers \w{12} here; threads=None there, 1 here\)"):
        OPENED["state"](tmp_path, model)


def test_code_tells_any_change_of_a_file_or_its_name_and_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    folder = tmp_path / "lib" / "some"
    (folder / "part").mkdir(parents=True)
    for name in ("a.py", "b.py", "part/c.py", "notes.txt"):
        (folder / name).write_text("1")
    read, found = jobs.code.__wrapped__, []
    for change in (
        lambda: (folder / "a.py").write_text("2"),
        lambda: (folder / "part" / "c.py").write_text("3"),
        lambda: (folder / "b.py").rename(folder / "d.py"),
        lambda: shutil.copy(folder / "a.py", folder / "e.py"),
    ):
        found.append(read("some"))
        change()
    found.append(read("some"))
    assert len(set(found)) == 5 and all(each.startswith("lib/some ") for each in found)
    (folder / "notes.txt").write_text("2")
    assert read("some") == found[-1]
    kept = jobs.code("some")
    (folder / "a.py").unlink()
    assert jobs.code("some") == kept != read("some")


def test_hashes_are_told_by_twelve_digits_and_other_values_whole():
    there, here = {"model": "a1" * 32, "bits": "3", "names": "ab" * 8}, {"model": "b2" * 32, "bits": "4", "names": ""}
    said = "bits=3 there, 4 here; model=a1a1a1a1a1a1 there, b2b2b2b2b2b2 here; names=abababababababab there,  here"
    with pytest.raises(ValueError, match=rf"folder holds another job \({said}\); use the same arguments"):
        same_job("folder", there, here)
    same_job("folder", there, dict(there))


def test_a_study_may_get_more_seeds_and_no_other_rates(tmp_path):
    note = tmp_path / "study.json"
    note.write_text(json.dumps({"rate": "1", "seeds": "(3, 4, 5)"}))  # as studies were noted once
    same_study(note, {"rate": "1", "seeds": "(3, 4, 5, 6)"}, (3, 4, 5, 6))
    with pytest.raises(ValueError, match="first seed=3 there, 4 here"):
        same_study(note, {"rate": "1"}, (4, 5, 6))
    fresh = tmp_path / "fresh.json"
    for seeds in ((3, 4, 5), (3, 4)):
        same_study(fresh, {"rate": "1"}, seeds)
    with pytest.raises(ValueError, match="rate=1 there, 2 here"):
        same_study(fresh, {"rate": "2"}, (3, 4, 5))


def test_of_two_jobs_that_begin_at_once_one_is_refused(tmp_path, model, monkeypatch):
    """Both find no note; the other's is there when this one writes its own."""
    first = files.write_first

    def late(path, text):
        first(path, text.replace('"bits": "3"', '"bits": "4"'))
        return first(path, text)

    monkeypatch.setattr(files, "write_first", late)
    with pytest.raises(ValueError, match=r"holds another job \(bits=4 there, 3 here\)"):
        jobs.JobState(tmp_path, **jobs.fingerprint(model), **GRID)


@pytest.mark.parametrize("content", ["{half", "[]"])
def test_a_note_of_something_else_is_refused(tmp_path, model, content):
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(ValueError, match=r"job\.json names no job"):
        jobs.JobState(tmp_path, **GRID)
    assert (tmp_path / "job.json").read_text() == content


def test_a_folder_with_tensors_of_no_job_is_no_state(tmp_path):
    tiny.save(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"holds model\.safetensors and no job\.json, so it is no state"):
        jobs.JobState(tmp_path, **GRID)
    assert sorted(tmp_path.iterdir()) == before


def small():
    return tiny.llama(num_hidden_layers=1)


def walked(quantizer):
    return lambda folder, _: quantizer.quantize_(small(), tiny.tokens(2, 8), **GRID, state=folder)


JOBS = {
    "blocks": walked(gptq),
    "layers": walked(rtn),
    "scales": lambda folder, _: awq.scale_(small(), tiny.tokens(2, 8), **GRID, state=folder),
    "embedding": walked(embedding),
    "losses": lambda folder, _: sensitivity.measure(small(), tiny.tokens(2, 8), group_size=32, state=folder),
    "greedy": lambda folder, model: greedy.choose(
        model, tiny.tokens(2, 8), bool, score="block_influence", free=[1, 2], state=folder
    ),
    "training": lambda folder, _: train(small(), folder),
}


def train(model, folder, **more):
    options = {"steps": 1, "learning_rate": 1e-4, "batch": 1, "folder": folder, **more}
    return loop.train_(model, tiny.tokens(2, 8), next_token.loss, **options)


@pytest.mark.parametrize("kind", [*JOBS, *OPENED])
def test_a_folder_in_which_another_process_works_is_refused_until_it_ends(tmp_path, model, kind):
    """Another process is a lock of another open file, which the system takes back with the process."""
    do = (JOBS | OPENED)[kind]
    with open(tmp_path / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=rf"{tmp_path} is in use: another process .*; wait .* another folder"):
            do(tmp_path, model)
    do(tmp_path, model)
    gc.collect()
    with open(tmp_path / ".lock", "w") as other:  # the job that has ended holds nothing
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_job_that_fails_lets_go_and_another_thread_waits_its_turn(tmp_path):
    begun, end, failed = threading.Event(), threading.Event(), []

    def on_step(*_):
        begun.set()
        end.wait(60)
        raise KeyError("a fault of the callback")

    def work():
        try:
            train(small(), tmp_path, on_step=on_step)
        except KeyError as error:  # which keeps the frames of the training alive
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(60)
    with pytest.raises(BlockingIOError, match="is in use"):
        train(small(), tmp_path)
    end.set()
    thread.join()
    assert failed
    with open(tmp_path / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    train(small(), tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "cut \ud83d", "n" * 250, "/".join(["d" * 200] * 20)])
def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path, model, name):
    for do in [JOBS["blocks"], JOBS["training"], OPENED["plan"]]:
        with pytest.raises(ValueError, match=r"NUL or half a character|too long.*give a shorter one"):
            do(tmp_path / name, model)
    assert not [*tmp_path.iterdir()]
