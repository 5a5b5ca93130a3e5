"""An architecture study as tables: from records on disk to what is published and drawn."""

import dataclasses
import json
import math

import pytest

from lib import published
from lib.report import study_records, study_tables
from lib.trainers import architecture_study as study
from lib.trainers import presets

PRESET = dataclasses.replace(
    presets.by_name("quick"), arms=("plain", "headwise", "wider"), blocks=(2, 1, 3), seeds=(0, 1, 2), rates=(1e-3, 1e-2)
)
BETTER = {"plain": 0.0, "headwise": 0.03, "wider": 0.01}
NOISE = (0.05, -0.02, 0.01)


def write(folder, arm, blocks, seed, rate):
    """A record with a loss of 4 - ln(blocks) / 5 - what the arm is better + the seed's noise, in two halves of bits."""
    run = study.Run(arm, blocks, seed, rate)
    loss = 4 - math.log(blocks) / 5 - BETTER[arm] * (1 + seed / 10) + NOISE[seed] + (rate < 0.01) / 4
    record = dataclasses.asdict(run) | {
        "loss": loss, "bits_per_byte": loss / 2, "losses": [6 - step / 100 for step in range(96)], "tokens": 96,
        "parameters": 1000 * blocks + 5 * len(arm), "flops_per_token": 2000 * blocks, "seconds": 9.0,
        "tokens_per_second": 50.0, "peak_flops": 1e6, "threads": 1, "peak_bytes": 448e6 + seed * 1e6,
    }  # fmt: skip
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / f"{run.name}.json").write_text(json.dumps(record))
    return loss


def score(folder, arm, blocks, seed):
    more = 1 + 0.3 * (arm == "headwise") + seed / 1000
    quantized = {"4": {"loss": 0.1 + NOISE[seed], "kl": 0.1}, "2": {"loss": more, "kl": 1.0}}
    found = {"tasks": {"last_word last_word": [0.2 + seed / 100, 0.04, 100, 0.05]}, "quantized": quantized}
    learned = 0.4 + (0.1 + seed / 1000) * (arm == "headwise")
    found["trace"] = {
        "trace_fomc exact_match": [learned, 0.05, 40, 0.45],
        "trace_x bleu_4": [1e-200 * seed, 0, 40, None],
    }
    (folder / "scored").mkdir(exist_ok=True)
    path = folder / "scored" / f"{study.Run(arm, blocks, seed, 1e-2).name}.json"
    path.write_text(json.dumps({"arm": arm, "blocks": blocks, "seed": seed, "rate": 1e-2} | found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("study")
    for run in [*study.rates(PRESET), *study.trainings(PRESET, dict.fromkeys(PRESET.arms, 1e-2))]:
        write(made, run.arm, run.blocks, run.seed, run.rate)
    for arm in PRESET.arms:
        for seed in PRESET.seeds:
            score(made, arm, 2, seed)
    times = {
        f"{arm} {depth}": {"ttft": [0.02] * 3, "tpot": [0.001 * depth] * 3}
        for arm, depth in (("plain", 1), ("plain", 2), ("plain", 3))
    }
    times |= {"headwise 2": {"ttft": [0.03] * 3, "tpot": [0.0025, 0.0026, 0.0099]}}
    (made / "speed.json").write_text(json.dumps(times))
    return made


@pytest.fixture(scope="module")
def found(folder):
    return published.Published("study", **study_tables.document(study_records.Study(folder, PRESET), ["a note"]))


def test_tables_hold_what_was_recorded(found):
    assert found.cell("rates", "wider", "0.001") == f"{(4 - math.log(2) / 5 - 0.01 + 0.05 + 0.25) / 2:.4f}"
    models, errors = found.numbers("models")
    assert list(models.index) == [f"{arm}, 2 blocks" for arm in PRESET.arms] + [
        "plain, 1 blocks", "plain, 3 blocks", "headwise, 1 blocks", "headwise, 3 blocks"
    ]  # fmt: skip
    row = models.loc["headwise, 2 blocks"]
    assert (row["M weights"], row["MFU, %"], row["decode, ms a token"], row["seeds"]) == (0.002, 60.0, 2.5, 3)
    assert row["peak, MB"] == 450
    expected = [4 - math.log(2) / 5 - 0.03 * (1 + seed / 10) + NOISE[seed] for seed in range(3)]
    assert (
        row["bits per byte"] == pytest.approx(sum(expected) / 6, abs=1e-3)
        and errors.loc["headwise, 2 blocks", "bits per byte"] > 0
    )
    assert found.cell("models", "wider, 2 blocks", "prefill, ms") == "–"
    gains, _ = found.numbers("beside plain")
    bits = {depth: [(4 - math.log(depth) / 5 + NOISE[seed]) / 2 for seed in range(3)] for depth in (2, 3)}
    assert "plain, 2 blocks" not in gains.index and len(gains) == len(models) - 1
    gain = gains.loc["plain, 3 blocks"]
    assert gain["gain, bits per byte"] == pytest.approx(bits[2][0] - bits[3][0], abs=1e-3)
    # at every seed the same: the interval is a point
    assert (gain["from"], gain["to"], gain["seeds"]) == pytest.approx(
        (math.log(1.5) / 10, math.log(1.5) / 10, 3), abs=1e-4
    )
    curve, _ = found.numbers("losses")
    assert len(curve) == 24 and curve.iloc[0, 0] == pytest.approx(5.985, abs=1e-3)
    assert found.table("noise").shape == (2, 1) and found.log() == "- a note" and "3 seeds" in found.about()


def test_pairs_at_equal_blocks_equal_weights_and_equal_time(found):
    gains, _ = found.numbers("pairs")
    assert gains.loc["headwise, 2 blocks, against plain", "gain, nats a token"] == pytest.approx(0.033, abs=1e-3)
    assert gains.loc["headwise against wider", "gain, nats a token"] == pytest.approx(0.022, abs=1e-3)
    deeper = gains.loc["headwise, 2 blocks, against plain, 3", "gain, nats a token"]
    assert deeper == pytest.approx(0.033 - math.log(3 / 2) / 5, abs=1e-3)
    equal = gains.loc["headwise against plain, equal decode time", "gain, nats a token"]
    assert equal == pytest.approx(0.033 - math.log(2.5 / 2) / 5, abs=1e-3)  # 2.5 plain blocks take its time
    assert found.cell("pairs", "headwise, 2 blocks, against plain", "answer") == "a gain"
    assert found.cell("pairs", "headwise, 2 blocks, against plain, 3", "answer") == "a loss"
    values, _ = found.numbers("worth")
    assert values.loc["2", "plain blocks of that loss"] == pytest.approx(2 * math.exp(0.033 * 5), abs=0.01)
    assert values.loc["2", "plain blocks of that decode time"] == pytest.approx(2.5)


def test_compression_and_tasks(found):
    assert found.cell("quantized", "plain, 2 blocks", "loss, 4 bits") == "0.113 ± 0.020"
    assert found.cell("harder", "headwise, 2 bits", "answer") == "a loss"
    assert found.cell("harder", "wider, 4 bits", "answer").startswith("no difference seen, and none above")
    tasks, _ = found.numbers("tasks")
    assert (
        tasks.loc["last_word last_word", "plain"] == pytest.approx(0.21)
        and tasks.loc["last_word last_word", "chance or constant"] == 0.05
    )
    assert found.cell("task pairs", "trace_fomc exact_match", "answer") == "a gain"
    assert found.cell("tasks", "trace_x bleu_4", "plain") == "0.000"
    assert found.cell("task pairs", "trace_x bleu_4", "answer") == "no difference seen, and none above 0"


def test_a_study_that_stopped_early_has_the_tables_that_it_can_have(tmp_path):
    for run in study.rates(PRESET):
        write(tmp_path, run.arm, run.blocks, run.seed, run.rate)
    for arm in ("plain", "headwise"):
        for seed in (1, 2):
            write(tmp_path, arm, 2, seed, 1e-2)
    made = study_tables.tables(study_records.Study(tmp_path, PRESET))
    assert list(made) == ["rates", "noise", "models", "beside plain", "pairs", "losses"]
    assert [row[0] for row in made["pairs"]["rows"]] == ["headwise, 2 blocks, against plain"]
    for seed in PRESET.seeds:  # deeper models that are worse: no number of plain blocks is worth a headwise one
        path = tmp_path / "records" / f"{study.Run('plain', 3, seed, 1e-2).name}.json"
        write(tmp_path, "plain", 3, seed, 1e-2)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": 5.0 + seed}))
    times = {name: {"tpot": [0.001], "ttft": [0.001]} for name in ("plain 2", "plain 3", "headwise 2")}  # no line
    (tmp_path / "speed.json").write_text(json.dumps(times))
    made = study_tables.tables(study_records.Study(tmp_path, PRESET))
    assert made["worth"]["rows"] == [["2", "3", "not determined", "–", "–", "–"]]


def test_publishing_keeps_the_notes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "folder", lambda: tmp_path)
    monkeypatch.setattr(presets, "by_name", lambda name: PRESET)
    assert study_tables.main(["quick", "--folder", str(folder)]) == 0
    path = tmp_path / "architectures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"notes": ["kept"]}))
    assert study_tables.main(["quick", "--folder", str(folder)]) == 0
    assert published.load("architectures", tmp_path).notes == ["kept"]
    assert study_tables.main(["quick", "--folder", str(tmp_path / "none")]) == 2
