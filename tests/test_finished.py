"""A run is finished while everything that decides its result has the same content, and not one change longer."""

import json
import shutil

import pytest

from lib import files
from lib.batches import batch, finished
from tests.batches import batch_file, notebook

# what a family of modules looks like: a literal table, and a function that imports what it names
TABLE = """import importlib
WHERE = {"x": "not a module", "other": "lib.other"}
def find(name):
    return importlib.import_module(WHERE.get(name, f"lib.by_name.{name}"))
"""
EVERYTHING = ["by_name/__init__.py", "by_name/x.py", "by_name/y.py", "other.py"]
EVERYTHING += ["used/__init__.py", "used/one.py", "used/two.py"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A small repository with its own lib, a finished run that recorded one local input, and what it consists of."""
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    modules = {
        "used/__init__.py": "",
        "used/one.py": "def f():\n    from . import two\n",
        "used/two.py": "",
        "other.py": "",
        "by_name/__init__.py": TABLE,
        "by_name/x.py": "",
        "by_name/y.py": "",
    }
    for name, text in modules.items():
        files.write_text(tmp_path / "lib" / name, text)
    files.write_text(tmp_path / "requirements.txt", "numpy==1")
    files.write_text(tmp_path / "data" / "texts" / "a.txt", "some text")
    notebook(tmp_path, "a", "from lib.used import one")
    (run,) = batch.read(batch_file(tmp_path, "notebooks: [{notebook: a, parameters: {x: 2}}]"))
    files.write_text(finished.output(run), "{}")
    inputs = [dict(origin="data/texts/a.txt"), dict(origin="packaged"), dict(origin=None), dict(origin="data/texts")]
    files.write_text(finished.record(run), json.dumps(dict(inputs=inputs)))
    finished.save(run, finished.parts(run), {})
    return tmp_path, run


def reason(run):
    return finished.reason(run, finished.parts(run), {})


def test_unchanged_is_finished(world):
    assert reason(world[1]) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda home: files.write_text(home / "lib/used/one.py", "x = 1"), "lib code changed"),
        (lambda home: files.write_text(home / "lib/used/two.py", "x = 1"), "lib code changed"),
        (lambda home: files.write_text(home / "lib/used/kernel.cpp", "int x;"), "lib code changed"),
        (lambda home: files.write_text(home / "lib/other.py", "x = 1"), None),
        (lambda home: files.write_text(home / "requirements.txt", "numpy==2"), "requirements changed"),
        (lambda home: notebook(home, "a", "from lib.used import one  # 2"), "notebook code changed"),
        (lambda home: files.write_text(home / "data/texts/a.txt", "some test"), "input data/texts/a.txt changed"),
        (lambda home: files.write_text(home / "data/texts/b.txt", "more"), "input data/texts changed"),
        (lambda home: (home / "data/texts/a.txt").unlink(), "input data/texts/a.txt is gone"),
        (lambda home: files.write_text(home / "data/results/a-x=2.json", "{}"), "record missing or changed"),
        (lambda home: (home / "data/results/a-x=2.json").unlink(), "record missing or changed"),
        (lambda home: (home / "data/report/notebooks/a-x=2.ipynb").unlink(), "output missing"),
        (lambda home: files.write_text(home / "data/cache/sweep/runs/a-x=2.json", '{"parts"'), "not finished before"),
        (lambda home: files.write_text(home / "data/cache/sweep/runs/a-x=2.json", "[]"), "not finished before"),
        (lambda home: files.write_text(home / "data/results/other.json", "{}"), None),
    ],
)
def test_each_change_has_its_consequence(world, change, expected):
    home, run = world
    change(home)
    assert reason(run) == expected


def test_other_data_another_machine_and_other_values_count(world, monkeypatch):
    _, run = world
    monkeypatch.setenv("THIMBLE_DATA", "/elsewhere")
    assert reason(run) == "THIMBLE_DATA changed"
    monkeypatch.delenv("THIMBLE_DATA")
    monkeypatch.setattr(finished.machine, "identity", lambda: "other")
    assert reason(run) == "machine changed"


def test_inputs_under_thimble_data_are_followed(world, monkeypatch, tmp_path_factory):
    _, run = world
    data = tmp_path_factory.mktemp("texts")
    files.write_text(data / "b.txt", "one")
    monkeypatch.setenv("THIMBLE_DATA", str(data))
    files.write_text(finished.record(run), json.dumps(dict(inputs=[dict(origin="$THIMBLE_DATA/b.txt")])))
    finished.save(run, finished.parts(run), {})
    assert reason(run) is None
    files.write_text(data / "b.txt", "two")
    assert reason(run) == "input $THIMBLE_DATA/b.txt changed"


def test_a_notebook_without_a_record_can_be_finished(world):
    _, run = world
    finished.record(run).unlink()
    finished.save(run, finished.parts(run), {})
    assert reason(run) is None


def test_a_report_depends_on_all_other_records(world):
    home, _ = world
    (run,) = batch.read(batch_file(home, "notebooks: [{notebook: a, after: all, parameters: {x: 3}}]"))
    before = finished.parts(run)
    files.write_text(finished.record(run), "its own")
    assert finished.parts(run) == before
    files.write_text(files.results() / "new.json", "{}")
    assert finished.parts(run)["records"] != before["records"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("import numpy, library", []),
        ("import lib.used.one as one", ["used/__init__.py", "used/one.py", "used/two.py"]),
        ("from lib import other", ["other.py"]),
        ("def f():\n    import lib.other", ["other.py"]),
        ("from lib.used import *", ["used/__init__.py", "used/one.py", "used/two.py"]),
        ("%matplotlib inline\n!ls\nif 1:\n    %time\nfrom lib import other", ["other.py"]),
        ("%%time\nfrom lib import other", ["other.py"]),
        ("from lib.used.two import name", ["used/__init__.py", "used/two.py"]),
        ("print('%s'\n    % x)\nfrom lib import other", ["other.py"]),
        ("from lib.by_name import find", ["by_name/__init__.py", "by_name/x.py", "other.py"]),
        ("files = !ls", EVERYTHING),
        ("importlib.import_module(name)", EVERYTHING),
    ],
)
def test_closure_follows_imports(world, cell, expected):
    home, _ = world
    assert [path.relative_to(home / "lib").as_posix() for path in finished.closure([cell])] == expected


def test_closure_follows_relative_imports_of_packages_above(world):
    home, _ = world
    files.write_text(home / "lib" / "used" / "deep" / "__init__.py", "")
    files.write_text(home / "lib" / "used" / "deep" / "x.py", "from ..two import y\nfrom ... import other")
    found = [path.relative_to(home / "lib").as_posix() for path in finished.closure(["from lib.used.deep import x"])]
    assert found == ["other.py", "used/__init__.py", "used/deep/__init__.py", "used/deep/x.py", "used/two.py"]


def test_an_edit_runs_again_what_depends_on_it_and_no_more(tmp_path, monkeypatch):
    """This repository's own notebooks: a figure of one of them, a method of several, a module of all."""
    for folder in ("lib", "notebooks"):
        kinds = shutil.ignore_patterns("__pycache__", "*.so", ".ipynb_checkpoints")
        shutil.copytree(files.ROOT / folder, tmp_path / folder, ignore=kinds)
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.setattr(files, "ROOT", tmp_path)
    notebooks = sorted((tmp_path / "notebooks").glob("*.ipynb"))
    runs = [batch.Run(path, {}, batch.defaults(path)) for path in notebooks]

    def changed_by(edited: str) -> list[str]:
        before = [finished.parts(run)["lib code"] for run in runs]
        with open(tmp_path / edited, "a") as file:
            file.write("\n# edited\n")
        return [run.name for run, old in zip(runs, before) if finished.parts(run)["lib code"] != old]

    assert changed_by("lib/report/evaluation.py") == ["60_report"]
    several = changed_by("lib/pruners/heal.py")
    assert "31_healing" in several and not {"00_start_here", "20_grids", "23_scales_and_clips"} & set(several)
    assert len(changed_by("lib/files.py")) == len(runs)
    assert changed_by("lib/report/site.py") == []
