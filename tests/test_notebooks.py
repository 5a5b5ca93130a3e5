"""The rules that every notebook keeps, and the one sentence that the repository is built on."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from tests import tiny

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    code = cells(path)
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is code[0]
    parameters = ast.parse(source(tagged[0])).body
    assert len(parameters) <= (11 if path.stem == "50_benchmark" else 8)  # every configuration is a run of that one
    for statement in parameters:
        ast.literal_eval(statement.value)
    for cell in code:
        lines = [line for line in source(cell).splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= 15, source(cell)
        assert not re.search(r"^\s*(def|class) ", source(cell), re.M), "it belongs in lib"
        assert not re.search(r"^import time|time\.time|perf_counter", source(cell), re.M), (
            "lib.metrics.speed is the stopwatch"
        )
    first = source(cells(path, "markdown")[0])
    assert first.startswith("# ") and "**Question.**" in first
    text = " ".join(source(cell) for cell in cells(path, "markdown"))
    assert "Exercise" in text
    assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_executed(path):
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in cells(path))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs) or path.stem == "50_benchmark"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_claims_are_findings_and_name_no_block_of_one_model(path):
    for cell in cells(path):
        tree = ast.parse(source(cell))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)], "state it by run.claim"
        assert not re.search(r"model\.layers\b|split\(\"\.\"\)\[2\]|num_hidden_layers", source(cell)), (
            "blocks and layers come from the model: lib.models.pick"
        )
        assert not re.search(r"[\d.]+ \* \w+\.stderr", source(cell)), "lib.metrics.verdicts says what is a difference"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_record_holds_every_parameter(path, tmp_path, monkeypatch):
    from lib import results

    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.delenv("THIMBLE_RUN_ID", raising=False)
    code = "\n".join(map(source, cells(path)))
    if "results.start" not in code:  # it only reads records
        assert path.stem[0] in "67"
        return
    assert f'results.start("{path.stem}", globals())' in code
    namespace = {}
    exec(source(cells(path)[0]), namespace)
    given = {name: value for name, value in namespace.items() if name != "__builtins__"}
    run = results.start(path.stem, namespace | {"another": object()})
    assert run.parameters == {"seed": 0} | given and not set(given) & set(results.COLUMNS[:9])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_student_finds_the_way_and_sees_how_a_picture_is_made(path):
    marked = [source(cell) for cell in cells(path, "markdown")]
    place, last = NOTEBOOKS.index(path), len(NOTEBOOKS) - 1
    assert "Before this:*" in marked[0] and ("Next:*" in marked[-1] or place == last)
    assert place == 0 or f"({NOTEBOOKS[place - 1].name})" in marked[0]
    assert f"({NOTEBOOKS[place + 1 if place < last else 0].name})" in marked[-1]
    learned = re.search(r"^## What we learned\n(.*?)(?=^## |\Z)", marked[-1], re.M | re.S)
    assert learned is None or len(learned[1].split()) <= 150
    drawing = re.compile(r"^(figure|grid|axes)\b.* = .*plot|axes\.set", re.M)
    drawn = [cell for cell in cells(path) if drawing.search(source(cell)) or path.stem.startswith("7")]
    assert any("image/png" in output.get("data", {}) for cell in drawn for output in cell["outputs"])


def test_the_batch_for_ones_own_model_runs_all_notebooks():
    from lib.batches import batch

    runs = batch.read(FOLDER / "batches" / "own_model.yaml", "somewhere")
    assert [run.notebook.stem for run in runs] == [path.stem for path in NOTEBOOKS if not path.stem.startswith("7")]
    assert all(run.everything.get("model", "somewhere") == "somewhere" for run in runs)


def test_the_sentence(tmp_path, monkeypatch):
    """Source, tokens, compress, measure, record: the sentence of the README, on a tiny model."""
    from lib import results
    from lib.metrics import perplexity
    from lib.quantizers import gptq
    from lib.report import figures
    from lib.sources import texts

    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    model = tiny.llama(max_position_embeddings=128)
    model.tokenizer = tiny.tokenizer()
    calibration = texts.load("packaged", split="valid").windows(4, 64)
    gptq.quantize_(model, calibration, bits=4, group_size=32)
    score = perplexity.measure(model, texts.load("packaged", split="test").windows(4, 64))
    with results.start("sentence") as run:
        run.record("perplexity", score)
    table = results.table()
    assert table["value"].tolist() == [score.value] and torch.isfinite(torch.tensor(score.value))
    assert figures.quality_by_bytes(table) is not None
