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
