"""A finished student judged: three variants, in pairs with a rival, resumed part by part, as tables."""

import dataclasses
import json

import numpy as np
import pytest

from lib.distillation import post_training, presets, variant_parts, variants
from lib.distillation.ladder import Ladder
from lib.export import compressed_tensors, plain
from lib.metrics import divergence, fresh, paired_tests, perplexity
from lib.metrics.score import from_values
from lib.metrics.speed import Measured
from lib.peers import environments, two_bits
from lib.report import distillation_tables
from lib.sources import models, texts
from tests import packed, tiny

SAMPLES = "packaged_continuation 6, packaged_instructions 2"


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    home = tmp_path_factory.mktemp("é judged")
    original = tiny.llama(num_hidden_layers=1, max_position_embeddings=2048)
    tiny.save(home / "original", original)
    for name, bits in (("student", 4), ("rival", 2)):
        made = packed.quantize_(models.load(str(home / "original"))[0], lambda _, bits=bits: (bits, 32, False))
        compressed_tensors.save(made, original.tokenizer, home / name)
    folders = {name: str(home / name) for name in ("original", "student", "rival")}
    return variants.Plan(
        **folders, texts={"packaged": "test"}, windows=3, length=24, samples=SAMPLES, new_tokens=6, prompts=1,
        answer_tokens=4, rounds=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def judged(plan, tmp_path_factory):
    """The folder of a judgement that was stopped after its first task and went on."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("judged") / "é"
    patch.setenv("THIMBLE_HOME", str(folder / "home"))
    patch.setattr(fresh, "measure", timed)
    on_prompts = variant_parts.on_prompts
    patch.setattr(variant_parts, "on_prompts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        variants.judge(plan, folder)
    patch.setattr(variant_parts, "on_prompts", on_prompts)
    patch.setattr(variant_parts, "on_task", None)  # the tasks are done
    patch.setattr(variant_parts, "on_text", None)
    variants.judge(plan, folder)
    patch.undo()
    return folder


def interrupted(*_, **__):
    raise KeyboardInterrupt


def timed(systems, **_):
    """Times without processes, which other tests start."""
    assert {name: each.kind for name, each in systems.items()} == {
        "original": "session", "student": "session", "lookup": "session"
    }  # fmt: skip
    assert systems["original"].options == {"embedding_bits": None}
    samples = {name: {"tpot": [0.1], "prefill": [9.0]} for name in systems}
    peaks = {name: from_values([7e6], "bytes", higher_is_better=False) for name in systems}
    return fresh.Fresh(Measured(samples, dict.fromkeys(systems, 1)), peaks, {})


def test_texts_are_measured_as_by_the_metrics_themselves(plan, judged):
    _, found = variants.measured(judged)
    rows = found["texts"]["packaged"]["systems"]
    original, student = (models.load(folder)[0] for folder in (plan.original, plan.student))
    tokens = texts.tokens(texts.load("packaged", "test"), original, count=3, length=24)
    told = divergence.quality(student, divergence.remember(original, tokens), tokens)
    assert rows["student"]["kl"] == pytest.approx(told["kl_divergence"].value, rel=1e-4)
    assert rows["student"]["perplexity_stderr"] == pytest.approx(told["perplexity"].stderr, rel=1e-4)
    assert rows["original"]["perplexity"] == pytest.approx(perplexity.measure(original, tokens).value, rel=1e-4)
    assert abs(rows["original"]["kl"]) < 1e-5 and rows["student"]["kl_baseline"] == told["kl_divergence"].baseline
    assert rows["post-training"]["kl"] > rows["student"]["kl"]


def test_tasks_are_compared_sample_by_sample(plan, judged):
    _, found = variants.measured(judged)
    part = found["tasks"]["packaged_continuation"]
    assert part["of"]["count"] == 6 and set(part["systems"]) == {"original", "student", "post-training"}
    for name, each in part["systems"].items():
        assert each["acc"]["n"] == 6 and each["acc"]["baseline"] is not None, name
    ahead = paired_tests.Comparison(**part["ahead"]["acc"])
    wanted = part["systems"]["student"]["acc"]["value"] - part["systems"]["post-training"]["acc"]["value"]
    assert ahead.difference == pytest.approx(wanted) and ahead.n == 6
    lookups = [part["systems"]["lookup"] for part in found["prompts"].values()]
    assert len(lookups) == 5 and all(each["identical"]["value"] == 1 for each in lookups)


def test_the_tables_have_every_variant_beside_what_costs_nothing(plan, judged, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    run = judged.parent
    (run / "variants").symlink_to(judged)
    rows = [{
        "rung": rung, "text": "packaged", "n": 3, "kl": kl, "kl_stderr": 0.01, "ratio": 1 + kl, "ratio_stderr": 0.1,
        "kl_baseline": 4.0, "divergences": [kl, kl + 0.02, kl + 0.01], "nll": [2.0, 2.1, 2.2],
        "original_nll": [2.01, 2.12, 2.21],
    } for rung, kl in (("start", 0.9), ("distilled", 0.4), (post_training.RUNG, 0.6), ("control", 0.1))]  # fmt: skip
    ladder = Ladder(run)
    ladder.kept |= {"rows": rows, "seconds": {"start": 60, "training": 120, "post-training": 179, "control": 90}}
    ladder.finish(moved=0)
    monkeypatch.delenv("THIMBLE_PEERS", raising=False)
    made = dataclasses.replace(presets.by_name("quick"), model=plan.original, group_size=32)
    made = dataclasses.replace(made, length=24, windows=4, calibration=2, unseen=2)
    assert "THIMBLE_PEERS is not set" in two_bits.run(made, run)["skipped"]
    tables = distillation_tables.tables(made, run)
    assert [row[0] for row in tables["ladder"]["rows"]][2] == "post-training, packaged"
    assert [row[-1] for row in tables["ladder"]["rows"]] == ["1.0", "3.0", "3.0", "1.5"]
    pairs = {row[0]: row for row in tables["pairs"]["rows"]}
    assert pairs["distilled against post-training, packaged"][1].startswith("0.2")
    assert pairs["loss of the control below the original's, packaged"][1] == "0.0133 ± 0.0033"
    assert tables["rivals"]["rows"][0][-1].startswith("left out: THIMBLE_PEERS is not set")
    shown = {row[0]: row[1:] for row in tables["variants"]["rows"]}
    assert shown["artifact, MB"][1] != shown["artifact, MB"][2] and "–" not in shown["KL, nats a token, packaged"]
    assert shown["packaged_continuation, acc"][3] == "as without" and shown["packaged_continuation, acc"][0] != "–"
    assert any(row[0].endswith("less post-training") for row in tables["tasks"]["rows"])
    json.dumps(tables)
    document = distillation_tables.document("quick", run)
    assert document["tables"].keys() == tables.keys() and "packaged is of a collection" in document["protocol"]


def test_a_rival_is_measured_on_the_same_windows_and_once(plan, tmp_path, monkeypatch):
    """Its own environment is another test's; here a folder comes from it."""
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    asked = []

    def quantize(name, model_folder, tokens, *, bits, group_size, folder, **options):
        asked.append((name, tuple(tokens.shape), bits, group_size, options))
        model, tokenizer = models.load(str(model_folder))
        model.model.layers[0].mlp.up_proj.weight.data *= 0.5
        plain.save(model, tokenizer, folder)
        return environments.Result(name, "1.0", bits, group_size, folder, 60.0, 2, 3_000_000, "float32", options)

    monkeypatch.setattr(environments, "quantize", quantize)
    made = dataclasses.replace(presets.by_name("quick"), model=plan.original, group_size=32, length=24, windows=4)
    found = two_bits.run(made, tmp_path / "run", iterations=5)
    assert asked == [("auto-round", (2, 24), 2, 32, {"extension": True, "iterations": 5})]
    assert found["rows"][0]["kl"] > 0 and found["rows"][0]["n"] == 4 and found["rows"][0]["rung"] == "auto-round"
    assert two_bits.run(made, tmp_path / "run", iterations=5) == found and len(asked) == 1
    with pytest.raises(ValueError, match="iterations=5 there, 6 here"):
        two_bits.run(made, tmp_path / "run", iterations=6)
    shown = distillation_tables.tables(made, tmp_path / "run")["rivals"]["rows"][0]
    assert shown[0] == "auto-round 1.0, packaged" and shown[-3:] == ["1.0", "3.0", ""]


def test_what_cannot_be_judged_is_refused_before_the_work(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="engine='paked'"):
        dataclasses.replace(plan, engine="paked")
    with pytest.raises(ValueError, match="names no number"):
        variants.judge(dataclasses.replace(plan, samples="mmlu"), tmp_path / "none")
    other = models.load(plan.original)[0]
    other.tokenizer.add_tokens(["<another>"])
    plain.save(other, other.tokenizer, tmp_path / "other")
    with pytest.raises(ValueError, match="give the original of both"):
        variants.judge(dataclasses.replace(plan, student=str(tmp_path / "other")), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert variants.main(["some/folder"]) == 2 and "--original and --folder" in capsys.readouterr().err
    asked = [
        "--samples",
        "packaged_programs 2, packaged_facts 2",
        "--original",
        plan.original,
        "--folder",
        str(tmp_path),
    ]
    assert variants.main([plan.student, *asked, "--plan"]) == 0
    told = capsys.readouterr().out
    assert "packaged_programs is left out" in told and "student: packaged_facts: 2 samples" in told


def test_post_training_gets_the_time_of_the_whole_pipeline():
    made = dataclasses.replace(presets.by_name("cpu"), calibration=96, rounding=120, windows=1024)
    found = post_training.plan(made, {"start": 600.0, "training": 2400.0})
    assert found == {"factor": 5.0, "calibration": 480, "rounding": 600}
    assert post_training.plan(made, {"start": 60.0, "training": 2400.0})["calibration"] == 96 + 1024
    with pytest.raises(ValueError, match="start='rtn' takes no longer"):
        post_training.check(presets.by_name("quick"))
    assert np.isfinite(found["factor"])
