"""One configuration of the benchmark: refused when it says two things, applied, saved and read back."""

import pytest
import torch

from lib import benchmark, tasks
from lib.metrics import count, peaks, speed
from lib.models.blocks import blocks
from lib.pruners import importance
from lib.sources import models, texts
from tests import tiny

DEFAULTS = {"method": "none", "bits": 16, "group_size": 32, "blocks": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gtpq"}, r"method='gtpq'; choose one of .*depth, .*gptq, .*; did you mean 'gptq'"),
        ({"method": "gptq", "bits": 9}, "grids have 2 to 8 bits"),
        ({"method": "rtn", "bits": 4, "blocks": 2}, "removes none; set blocks=0"),
        ({"method": "depth"}, "it removes 1 or more"),
        ({"blocks": 3}, "which changes nothing"),
        ({"bits": 4}, "keeps 16-bit weights; set bits=16"),
        ({"engine": "paked"}, "did you mean 'packed'"),
        ({"decoding": "beam"}, "decoding='beam'; choose"),
        ({"tasks": "arc_esay 10"}, "did you mean 'arc_easy'"),
        ({"tasks": "arc_easy"}, "names no number from 2"),
        ({"tasks": "arc_easy 10, piqa 1"}, "'piqa 1' names no number from 2"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        benchmark.check(**DEFAULTS | change)


@pytest.mark.parametrize("change", [{}, {"method": "depth", "blocks": 1}, {"method": "gptq", "bits": 3}])
def test_what_is_saved_is_what_was_measured(change, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    model, settings = tiny.llama(), DEFAULTS | change
    benchmark.compress_(model, ids, **settings)
    assert len(blocks(model)) == 4 - settings["blocks"]
    folder = benchmark.save(model, tiny.tokenizer(), model="some/tiny", text="packaged", windows=2, **settings)
    again, _ = models.load(str(folder))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert folder.name.startswith("tiny-") and str(settings["method"]).replace("none", "original") in folder.name


def test_the_place_of_the_artifact_is_looked_at_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    how = DEFAULTS | {"method": "gptq", "bits": 3, "calibration_windows": 2, "model": "some/tiny"}
    place = benchmark.folder(**how, text=str(tmp_path / "my text.txt"))
    assert place == tmp_path / "checkpoints" / f"tiny-gptq-3bit-g{how['group_size']}-my text.txt2"
    place.mkdir(parents=True)
    (place / "thesis").touch()
    with pytest.raises(FileExistsError, match="did not write; it holds thesis"):
        benchmark.folder(**how, text="my text.txt")
    with pytest.raises(ValueError, match="too long"):
        benchmark.folder(**how, text="t" * 230)


def test_the_blocks_that_go_are_named_with_their_kind(capsys):
    model = tiny.llama()
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    model.config.layer_types = ["full_attention", "sliding_attention"] * 2
    order = sorted(range(4), key=importance.score("block_influence", model, ids).__getitem__)
    kinds = [f"{block} ({model.config.layer_types[block]})" for block in sorted(order[:2])]
    benchmark.compress_(model, ids, **DEFAULTS | {"method": "depth", "blocks": 2})
    assert f"blocks {', '.join(kinds)} of 4 go" in capsys.readouterr().out


def test_tasks_are_read_with_their_numbers():
    assert benchmark.asked("hellaswag 200,  mmlu_anatomy 5,") == {"hellaswag": 200, "mmlu_anatomy": 5}
    assert benchmark.asked("") == {}


@pytest.mark.parametrize("engine", benchmark.ENGINES)
def test_lookup_and_tasks_on_both_engines(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    model = tiny.llama(max_position_embeddings=2048)
    running = benchmark.ready_(model, engine)
    assert (running is model) == (engine == "transformers")
    gains = benchmark.lookup_gains(running, model.tokenizer, count=1, new_tokens=6)
    assert {metric for _, metric in gains} == {"tokens_per_step", "speed_up"} and len(gains) == 10
    assert all(gains[key].value >= 1 for key in gains if key[1] == "tokens_per_step")
    found = benchmark.evaluate(model, "packaged_facts 6, packaged_continuation 4")
    assert [len(each.rows) for each in found.values()] == [6, 4]
    with pytest.raises(PermissionError, match="allow_execution"):
        benchmark.evaluate(model, "packaged_facts 6, packaged_programs 2")


def test_samples_that_the_model_was_calibrated_on_stop_it(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    model, asked = tiny.llama(max_position_embeddings=2048), "packaged_facts 2, packaged_continuation 20"
    samples = tasks.load("packaged_continuation", count=20).samples
    sample = max(samples, key=lambda each: len(each.requests[0].context.split()))
    clean = texts.Text("mine", "valid", ["Nothing of that kind stands here."])
    planted = texts.Text("mine", "valid", [*clean.documents, f"Once. {sample.requests[0].context} The end."])
    with pytest.raises(ValueError, match=f"1 of .* test samples occur in mine/valid, first '{sample.id}'"):
        benchmark.evaluate(model, asked, calibration=planted)
    assert not list(tmp_path.rglob("part-*"))  # nothing was asked, not even of the clean task before it
    assert len(benchmark.evaluate(model, "packaged_facts 2", calibration=clean)["packaged_facts"].rows) == 2


def test_shares_of_the_peaks():
    top, model = peaks.measure(), tiny.llama()
    plain = speed.measure({"own": model}, prompt=8, new_tokens=3, rounds=2)["own"]
    found = benchmark.shares(plain, model, top, context=10)
    assert found["mbu"].value == pytest.approx(
        count.bytes_per_token(model, 10) / plain["tpot"].value / top.bandwidth, rel=1e-6
    )
    assert found["mfu"].value > 0
    session = benchmark.ready_(model, "packed")
    measured = speed.measure({"packed": session}, prompt=8, new_tokens=3, rounds=2)["packed"]
    assert set(benchmark.shares(measured, session, top, context=10)) == {"mbu"}
