"""A batch file is refused as a whole, with every problem named, before anything runs."""

import json

import pytest

from lib.batches import batch
from tests.batches import batch_file, notebook

DEFAULTS = "x = 1\nrate = 0.5\nname: str = 'rtn'\nflag = False\nsizes = [1]\nanything = None"


@pytest.fixture
def folder(tmp_path):
    notebook(tmp_path, "50_benchmark", "print(x)", parameters=DEFAULTS)
    notebook(tmp_path, "60_report", "print(1)")
    return tmp_path


def read(folder, entries, head=""):
    return batch.read(batch_file(folder, f"{head}\nnotebooks:\n{entries}"))


def test_grids_and_lists_expand_in_order(folder):
    runs = read(
        folder,
        """
 - notebook: 60_report
 - {notebook: 50_benchmark, parameters: {rate: 2}, grid: {name: [rtn, gptq], x: [8, 4]}}
 - {notebook: 50_benchmark, runs: [{name: depth, x: 2}, {name: depth, x: 4}], timeout: 7}
 - {notebook: 60_report, after: all, parameters: {x: 3}}
""",
        head="timeout: 60",
    )
    assert [run.label for run in runs] == [
        "60_report",
        "50_benchmark rate=2.0 name=rtn x=8",
        "50_benchmark rate=2.0 name=rtn x=4",
        "50_benchmark rate=2.0 name=gptq x=8",
        "50_benchmark rate=2.0 name=gptq x=4",
        "50_benchmark name=depth x=2",
        "50_benchmark name=depth x=4",
        "60_report x=3",
    ]
    assert runs[1].name == "50_benchmark-name=rtn-rate=2.0-x=8" and runs[0].name == "60_report"
    assert [run.timeout for run in runs] == [60] * 5 + [7, 7, 60]
    assert [run.waits_for for run in runs] == [0] * 7 + [7] and runs[-1].after_all
    assert runs[1].everything == dict(x=8, rate=2.0, name="rtn", flag=False, sizes=[1], anything=None)


def test_names_are_safe_and_tell_configurations_apart(folder):
    values = ['"a/b"', '"a b"', '"a_b"', "3", '"3"', "null", '"null"', "[1, 2]", "a" * 300, '"é"', "1.5", "-2"]
    runs = read(folder, f" - {{notebook: 50_benchmark, grid: {{anything: [{', '.join(values[:5] + values[6:])}]}}}}")
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 11
    assert all(len(name) < 130 and name.isascii() and not set("/ \"'[]") & set(name) for name in names)
    assert {"50_benchmark-anything=a_b", "50_benchmark-anything=3", "50_benchmark-anything=1.5"} <= set(names)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{notebook: 50_benchmrk}", "notebook '50_benchmrk' is not in notebooks/.*did you mean '50_benchmark'"),
        ("{notebook: 50_benchmark, grids: {}}", "'grids' is no key of this entry.*did you mean 'grid'"),
        ("{notebook: 50_benchmark, parameters: {nmae: x}}", "parameter 'nmae'.*did you mean 'name'"),
        ("{notebook: 50_benchmark, parameters: {x: 1.5}}", "x=1.5 is a float; a int is allowed"),
        ("{notebook: 50_benchmark, parameters: {x: true}}", "x=True is a bool"),
        ("{notebook: 50_benchmark, parameters: {x: null}}", "x=None is a NoneType"),
        ("{notebook: 50_benchmark, parameters: {flag: 1}}", "flag=1 is a int; a bool"),
        ("{notebook: 50_benchmark, parameters: {name: no}}", "name=False is a bool; a str.*quote it"),
        ("{notebook: 50_benchmark, parameters: {rate: 1e-4}}", "rate='1e-4' is a str.*write 1.0e-4"),
        ("{notebook: 50_benchmark, parameters: {rate: .nan}}", "rate=nan"),
        ("{notebook: 50_benchmark, parameters: {sizes: 3}}", "sizes=3 is a int; a list"),
        ("{notebook: 50_benchmark, parameters: {anything: 2020-01-01}}", "anything=datetime.date"),
        ("{notebook: 50_benchmark, parameters: [x]}", "add the braces"),
        ("{notebook: 50_benchmark, grid: {x: 3}}", "add the brackets"),
        ("{notebook: 50_benchmark, grid: {x: []}}", "a value at least"),
        ("{notebook: 50_benchmark, runs: {x: 1}}", "a run at least"),
        ("{notebook: 50_benchmark, runs: []}", "a run at least"),
        ("{notebook: 50_benchmark, runs: [3]}", "a run at least"),
        ("{notebook: 50_benchmark, runs: [{x: 1}], grid: {x: [1]}}", "both grid and runs"),
        ("{notebook: 50_benchmark, parameters: {x: 1}, grid: {x: [2]}}", "x is given under parameters and again"),
        ("{notebook: 50_benchmark, after: 60_report}", "only `all` is allowed"),
        ("{notebook: 50_benchmark, timeout: soon}", "timeout='soon'; a positive number"),
        ("{notebook: 50_benchmark, timeout: 0}", "timeout=0"),
        ("{notebook: 50_benchmark, grid: {x: [2, 2]}}", "x=2 and 50_benchmark x=2 are the same configuration"),
        ("{notebook: 50_benchmark, runs: [{}, {x: 1}]}", "50_benchmark and 50_benchmark x=1 are the same"),
        ("{parameters: {x: 1}}", "it names no notebook"),
        ("50_benchmark", "it names no notebook"),
    ],
)
def test_wrong_entries_are_refused(folder, entry, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, f" - {entry}")
    assert "nothing was run" in str(caught.value)


def test_all_problems_are_listed_at_once(folder):
    entries = " - notebook: 60_report\n - notebook: nothing\n - {notebook: 50_benchmark, parameters: {y: 1}}"
    with pytest.raises(ValueError, match=r"(?s)entry 2 \(nothing\).*entry 3 \(50_benchmark\)"):
        read(folder, entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebooks: []", "a list with an entry per notebook"),
        ("timeout: 3", "notebooks=None"),
        ("", "holds a NoneType"),
        ("- a", "holds a list"),
        ("notebooks: [", "is no YAML"),
        ("notebook: [a]", "did you mean 'notebooks'"),
        ("timeout: 1\nnotebooks: [{notebook: 60_report}]\ntimeout: 2", "gives 'timeout' twice"),
        ("notebooks: [{notebook: 50_benchmark, parameters: {x: 1, x: 2}}]", r"gives 'x' twice \(line 1\)"),
    ],
)
def test_wrong_files_are_refused(folder, text, message):
    with pytest.raises(ValueError, match=message):
        batch.read(batch_file(folder, text))


def test_absent_batch_names_the_nearest(folder):
    path = batch_file(folder, "notebooks: []", name="report")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'report.yaml'"):
        batch.read(path.with_name("reports.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(parameters=None), "0 cells tagged"),
        (dict(kernel=None), "names no kernel"),
        (dict(parameters="x = 1\ny = x + 1"), "holds more than"),
        (dict(parameters="x = 1\nprint(x)"), "holds more than"),
        (dict(parameters="x = (1"), "holds more than"),
        (dict(parameters="x.y = 1"), "holds more than"),
    ],
)
def test_notebooks_that_cannot_take_parameters_are_refused(tmp_path, changes, message):
    notebook(tmp_path, "bad", "print(1)", **changes)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, " - notebook: bad")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": 3}', '{"worksheets": []}'])
def test_files_that_are_no_notebooks_are_refused(tmp_path, content):
    notebook(tmp_path, "bad").write_text(content)
    with pytest.raises(ValueError, match=r"bad\.ipynb is not a notebook"):
        read(tmp_path, " - notebook: bad")


def test_code_cells_leave_out_text_and_outputs(tmp_path):
    path = notebook(tmp_path, "a", "print(1)")
    document = json.loads(path.read_text())
    document["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    document["cells"].append({"cell_type": "markdown", "metadata": {}, "source": ["text"], "id": "a"})
    path.write_text(json.dumps(document))
    assert batch.code_cells(path) == ["x = 1", "print(1)"]


def test_a_model_that_is_given_takes_the_place_of_each_notebooks_own(tmp_path):
    notebook(tmp_path, "with", parameters="model = 'packaged'\nx = 1")
    notebook(tmp_path, "without", parameters="x = 1")
    path = batch_file(tmp_path, "notebooks: [{notebook: with, parameters: {x: 2}}, {notebook: without}]")
    one, other = batch.read(path, "my/folder")
    assert one.parameters == {"x": 2, "model": "my/folder"} and one.everything["model"] == "my/folder"
    assert other.parameters == {}  # it has no such parameter
