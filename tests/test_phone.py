"""The plan tried under a limit, the figure of the competition's table, and file sizes: without their runtimes."""

import json
import subprocess
from pathlib import Path

import numpy
import pandas as pd
import pytest

from lib import published
from lib.export import gguf, gguf_contents, mobile, mobile_check
from lib.peers import gguf_sizes
from lib.report import phone
from tests import gguf_models


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = gguf_models.build("llama", num_hidden_layers=2)
    return gguf.export(model, model.tokenizer, tmp_path_factory.mktemp("exports") / "modèle") / gguf.FILE


def test_the_prediction_is_the_plan_s_with_what_llama_cpp_reserves(file):
    config, entries = mobile_check.described(file), gguf_contents.entries(file)
    built = gguf_models.build("llama", num_hidden_layers=2).config
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(built, name)
    found = mobile_check.predict(file, 100, 20, 16, runtime=1000)
    tensors = sum(each.n_bytes for each in entries)
    cache, working = mobile.cache_bytes(built, 256), mobile.activation_bytes(built, 16)  # 120 positions take 256
    reserve = 1024 * 60 * 336
    assert found == 1000 + tensors + cache + working + reserve + mobile.ENTRY * built.vocab_size


@pytest.mark.parametrize(("most", "lives", "killed"), [(0, True, True), (0.3, False, True), (-0.3, True, False)])
def test_it_lives_with_a_tenth_more_and_is_killed_with_a_tenth_less(file, monkeypatch, most, lives, killed):
    """A runtime that takes the prediction, or is off by three tenths."""

    def run(command, **_):
        asked = json.loads(Path(command[-1]).read_text())
        taken = 1000 if asked["file"] is None else mobile_check.predict(file, 8, 4, 4, runtime=1000) * (1 + most)
        if asked["limit"] and taken > asked["limit"]:
            return subprocess.CompletedProcess(command, -9, "", "")
        report = {"peak": int(taken), "resident": int(taken), "seconds": {"prompt": 1.0, "token": 1.0}}
        Path(asked["report"]).write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(mobile_check.subprocess, "run", run)
    monkeypatch.setattr(mobile_check.certify, "interpreter", lambda _: "python")
    (row,) = mobile_check.check([file], settings=((8, 4, 4),))
    assert (row["lives"], row["killed"]) == (lives, killed) and row["error"] == pytest.approx(most, abs=1e-3)
    assert ("DIES" in mobile_check.line(row)) != lives and ("LIVES" in mobile_check.line(row)) != killed


def test_missing_runtimes_are_named_with_their_commands(file, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_PEERS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="cyllama=="):
        mobile_check.check([file])
    with pytest.raises(FileNotFoundError, match="llama-cpp-py-sync=="):
        gguf_sizes.run(tmp_path / "sizes", model="none", types=["Q4_0"])
    monkeypatch.setattr(gguf_sizes.certify, "interpreter", lambda _: "python")
    with pytest.raises(ValueError, match="there is no type of file 'Q4_1'"):
        gguf_sizes.run(tmp_path / "sizes", model="none", types=["Q4_1"])


def test_sizes_are_published_as_they_are_read(tmp_path):
    """Means and errors over windows, ours as a share of llama.cpp's, and the paired gain."""
    ours, theirs = numpy.array([0.1, 0.2, 0.3]), numpy.array([0.4, 0.4, 0.7])
    sides = {"ours": (ours, 59_000_000), "theirs": (theirs, 60_050_000)}
    row = {"type": "Q4_0", "windows": 3, "version": "b1", "gain": gguf_sizes._mean(theirs - ours)}
    row |= {side: {"bytes": size, "kl": gguf_sizes._mean(values)} for side, (values, size) in sides.items()}
    given = {"model": "m", "length": 64, "calibration": 8, "steps": 0, "scale_steps": 0}
    (tmp_path / "exports.json").write_text(json.dumps(gguf_sizes.document([row], given)))
    values, errors = published.load("exports", tmp_path).numbers("sizes")
    assert values.loc["Q4_0"].tolist() == [60.0, 59.0, 0.5, 0.2, 0.4, 0.3]
    assert errors.loc["Q4_0", "KL, ours"] == pytest.approx(0.1 / 3**0.5, abs=1e-4)


def test_scores_by_depth_stand_beside_chance():
    row = {
        "metric": "competition_score",
        "notebook": "46_phone",
        "run": "a",
        "status": "finished",
        "time": "2026",
        "n": 40,
        "task": "bbh",
    }
    rows = [row | {"removed_blocks": n, "value": 0.3, "low": 0.2, "high": 0.4, "chance": 0.25} for n in (0, 3)]
    figure = phone.scores(pd.DataFrame(rows))
    (axes,) = figure.axes
    assert len(axes.containers[0][0].get_xdata()) == 2 and axes.lines[-1].get_ydata()[0] == 0.25
    assert not phone.scores(pd.DataFrame(rows).assign(metric="other")).axes[0].containers
