"""A claim that does not hold is a finding: printed, recorded, listed; an error only for the committed defaults."""

import json
import subprocess

import numpy as np
import pytest
import torch

from lib import claims, files, results
from lib.metrics import score
from tests.batches import notebook


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A repository with one notebook, whose committed defaults are x = 1 and names = ["a"]."""
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.delenv("THIMBLE_CLAIMS", raising=False)
    monkeypatch.delenv("THIMBLE_RUN_ID", raising=False)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    notebook(tmp_path, "a", parameters='x = 1\nnames = ["a"]\nseed = 3')
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def started(**changes):
    """A run of the notebook with its defaults, as its variables give them."""
    return results.start("a", {"__builtins__": None, "x": 1, "names": ["a"], "seed": 3, "other": object()} | changes)


def test_what_holds_is_printed_and_recorded_with_its_numbers(world, capsys):
    run = started()
    assert run.claim("one is less than two", torch.tensor(True), one=score.exact(1, "items"), two=np.float64(2.5))
    assert capsys.readouterr().out == "Holds: one is less than two (one 1, two 2.5)\n"
    (claim,) = json.loads(run.path.read_text())["claims"]
    assert claim == dict(sentence="one is less than two", holds=True, numbers=dict(one=1.0, two=2.5), clock=False)


def test_what_does_not_hold_is_a_finding_and_the_notebook_goes_on(world, capsys):
    run = started()
    assert not run.claim("two is less than one", 2 < 1, two=2)
    assert not run.claim("it is fast", False, clock=True)
    run.record("m", score.exact(1, "items"))
    run.finish()
    assert "DOES NOT HOLD: two is less than one (two 2)" in capsys.readouterr().out
    document = json.loads(run.path.read_text())
    assert claims.missed([document]) == [
        f"{run.id}: two is less than one (two 2)",
        f"{run.id}: it is fast [depends on a clock]",
    ]
    assert len(results.table()) == len(run.table()) == 1


def test_under_make_test_only_the_committed_defaults_raise_and_no_clock(world, monkeypatch):
    monkeypatch.setenv("THIMBLE_CLAIMS", "strict")
    with pytest.raises(claims.ClaimError, match=r"DOES NOT HOLD: two is less than one \(two 2\)"):
        started().claim("two is less than one", 2 < 1, two=2)
    assert not started().claim("it is fast", False, clock=True)
    for changed in (dict(x=2), dict(names=["b"]), dict(seed=4)):
        assert not started(**changed).claim("two is less than one", False)
    notebook(world, "a", parameters="x = 2\nnames = []\nseed = 3")  # an edit that was not committed
    assert not started(x=2, names=[]).claim("two is less than one", False)
    assert not results.start("elsewhere").claim("two is less than one", False)


def test_without_git_the_defaults_are_those_of_the_file(world, monkeypatch):
    monkeypatch.setenv("THIMBLE_CLAIMS", "strict")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(claims.ClaimError):
        started().claim("two is less than one", False)
    assert not started(x=2).claim("two is less than one", False)


def test_a_condition_of_many_values_is_refused(world):
    for several in (torch.tensor([True, False]), np.array([True, False])):
        with pytest.raises(TypeError, match="one truth value is allowed"):
            started().claim("all are large", several)


def test_the_record_holds_every_parameter_and_nothing_else(world):
    run = started(names=["b"], x=7)
    assert run.document["parameters"] == dict(x=7, names=["b"]) and run.document["seed"] == 3
    with pytest.raises(FileNotFoundError, match="'missing' is not in this folder"):
        results.start("missing", {"__builtins__": None})
    with pytest.raises(ValueError, match="are allowed"):
        started(x=object())
