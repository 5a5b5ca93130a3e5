"""Every notebook on models that it was not written for: other families, one block or forty, a folder with an accent."""

import gc
import json
import os
import shutil
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import pytest

from lib import files
from tests import tiny

FOLDER = Path(__file__).parent.parent / "notebooks"
PUBLISHED = ("12_architecture_study", "16_tune_or_compress_first")  # they read what was published, as from 70 on
# they read no model: on all three they would do the same
TEXTS = ("01_corpus", "02_deduplication", "03_quality", "04_clusters", "05_mixtures")
NOTEBOOKS = sorted(path for path in FOLDER.glob("[0-6]*.ipynb") if path.stem not in PUBLISHED + TEXTS)
ONE = ("40_packed_kernels", "45_exports", "46_phone")
NAME = "my model é"
pytestmark = pytest.mark.usefixtures("warm")  # peers and systems run in processes of their own
SIZES = dict(max_position_embeddings=1024, initializer_range=0.05)
MODELS = {
    "llama, one block": lambda: tiny.llama(num_hidden_layers=1, **SIZES),
    "qwen3, forty blocks": lambda: tiny.qwen3(num_hidden_layers=40, **SIZES),
    "mistral, four blocks": lambda: tiny.mistral(tie_word_embeddings=False, **SIZES),
}
# small values of what a notebook's time depends on; every other parameter stays at its default
SMALL = dict(windows=2, calibration_windows=2, new_tokens=3, steps=2, answers=1, minutes=0, every=20, count=4)
SMALL |= dict(group_sizes=[32, 64, 128], tokens=[512, 1024], methods="rtn, recipe", length=32, input_tokens=64)
SMALL |= dict(tasks="packaged_continuation 4", choices=None, training_tokens=2048)
OTHER = {"50_benchmark": dict(tasks="packaged_continuation 4", engine="packed"), "30_depth_pruning": dict(removed=[1])}
OTHER["07_vocabulary"] = dict(documents_read=1, characters=300, shares=[1.0, 0.67])
# no reader of these is in this environment: a process for each of the others takes seconds
OTHER["45_exports"] = dict(formats="mlx, gptq")
OTHER["46_phone"] = dict(depths=[0.2], tasks="packaged_continuation 2", input_tokens=16)
OTHER["06_tokenizers"] = dict(sizes=[520, 560, 600], characters=40_000)


def run(path: Path, home: Path, model, monkeypatch, **given) -> dict:
    """Execute the code cells of a notebook in this process, in a home of its own; returns its record."""
    monkeypatch.setenv("THIMBLE_HOME", str(home))
    monkeypatch.setenv("THIMBLE_CLAIMS", "strict")  # claims of other models and values are findings even so
    monkeypatch.delenv("THIMBLE_RUN_ID", raising=False)
    monkeypatch.setattr("lib.metrics.speed.WARMUPS", 1)  # runs until two agree: times are not what is looked at here
    monkeypatch.chdir(FOLDER)
    matplotlib.use("Agg")
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    namespace = {"__name__": "__main__", "display": print}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{path.stem}[{number}]", "exec"), namespace)
        if number == 1:  # what it imports is no garbage: each training and timing looks through all that is not frozen
            gc.collect()
            gc.freeze()
        if number == 0:
            known = {name: given[name] for name in given if name in namespace and given[name] is not None}
            namespace.update({"model": str(model)} | known if "model" in namespace else known)
        matplotlib.pyplot.close("all")
    records = [json.loads(each.read_text()) for each in files.results().glob(f"{path.stem}-*.json")]
    return records[-1] if records else {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each model in a folder with a space and an accent."""
    made = {}
    for name, build in MODELS.items():
        folder = tmp_path_factory.mktemp("models") / NAME
        made[name] = tiny.save(folder, build())
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_model_it_does_not_know(path, name, folders, tmp_path, monkeypatch):
    if path.stem in ONE and "one block" not in name:
        pytest.skip("its time goes to products of fixed sizes, or to processes; it is tried on one block")
    document = run(path, tmp_path, folders[name], monkeypatch, **SMALL | OTHER.get(path.stem, {}))
    if path.stem != "60_report":
        assert document["status"] == "finished" and document["parameters"]["model"].endswith(NAME)
        assert document["rows"] and all(isinstance(claim["holds"], bool) for claim in document.get("claims", []))


# what one run of the benchmark answers: the report's table, its figures and its guards are made of these
RECORDED = {
    "original": {"prefill", "decode", "ttft", "tpot"},
    "compressed": {"perplexity", "kl_divergence", "top1_agreement", "artifact_bytes", "bits_per_weight", "peak_memory"},
}


@pytest.mark.parametrize("method", ["gptq", "depth", "none"])
def test_the_benchmark_records_what_the_report_shows(method, folders, tmp_path, monkeypatch):
    path, name = FOLDER / "50_benchmark.ipynb", "mistral, four blocks"
    given = dict(method=method, blocks=int(method == "depth"), bits=4 if method == "gptq" else 16, windows=3)
    document = run(path, tmp_path, folders[name], monkeypatch, **SMALL | given | dict(tasks=""))
    rows = {(row["labels"].get("arm"), row["metric"]): row for row in document["rows"]}
    for arm, metrics in RECORDED.items():
        assert metrics <= {metric for of, metric in rows if of == arm}
    assert RECORDED["original"] <= {metric for of, metric in rows if of == "compressed"}
    divergence = rows["compressed", "kl_divergence"]
    assert divergence["n"] == 3 and divergence["baseline"] > 0
    assert (divergence["value"] == pytest.approx(0, abs=1e-6)) == (method == "none")
    assert rows["compressed", "bits_per_weight"]["value"] > 0
    assert all(row["value"] > 0 for (_, metric), row in rows.items() if metric in RECORDED["original"])
    chosen = document["parameters"]
    assert (chosen["method"], chosen["windows"], chosen["calibration_windows"]) == (method, 3, 2)


REAL = os.environ.get("THIMBLE_REAL", "") or files.ROOT / "checkpoints" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def eighteen(tmp_path_factory):
    """A real model of another depth, saved as an ordinary checkpoint."""
    from lib.export import plain
    from lib.pruners import depth
    from lib.sources import models

    model, tokenizer = models.load(str(REAL))
    depth.drop_blocks_(model, range(10, 22))
    folder = plain.save(model, tokenizer, tmp_path_factory.mktemp("models") / NAME)
    del model
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path(REAL).is_dir(), reason="the packaged model was not converted yet: make setup")
@pytest.mark.parametrize("name", ["21_outliers", "27_scales", pytest.param("30_depth_pruning", marks=pytest.mark.long)])
def test_a_notebook_runs_on_eighteen_blocks_of_the_packaged_model(name, eighteen, tmp_path, monkeypatch):
    """What a reader does first."""
    given = SMALL | dict(windows=1, calibration_windows=1, choices=["block_influence"])
    document = run(FOLDER / f"{name}.ipynb", tmp_path, eighteen, monkeypatch, **given)
    assert document["status"] == "finished" and document["rows"]
