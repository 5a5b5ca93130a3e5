"""One command teaches a model preferences and keeps it what it is; a study of several goes on, and becomes tables."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from lib import files
from lib.alignment import judged_training, presets, rewarded, study, tune
from lib.alignment.presets import Arm, Preset
from lib.finetuning import low_rank_folder
from lib.quantized import low_rank_linear
from lib.quantized.linear import QuantLinear
from lib.report import preference_tables
from lib.sources import models
from tests import tiny

TINY = Preset(
    "packaged", 400, 8, 3, 4, 2, 4, 4, {"full": (1e-3, 1e-2), "scales": (1e-2,)},
    (Arm("dpo"), Arm("kto"), Arm("dpo", "scales", 2)), (0, 1, 2), calibration=1, windows=1, plain=64, group_size=32,
    asked=2, new_tokens=3, judge=3, tasks=(("packaged_instructions", 1),), task_tokens=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny.llama(num_hidden_layers=1, max_position_embeddings=1024)
    return str(tiny.save(tmp_path_factory.mktemp("models") / "my model é", model))


def command(monkeypatch, folder, *more):
    monkeypatch.setitem(presets.PRESETS, "tiny", dataclasses.replace(TINY, model=folder))
    return tune.main(["tiny", *more])


@pytest.mark.parametrize("way", ["scales", "lora", "qlora", "qlora-back"])
def test_the_command_trains_and_saves_a_model_of_the_same_kind(way, folder, tmp_path, monkeypatch, capsys):
    quantized = (["--bits", "2"] if way in presets.QUANTIZED else []) + ([] if way == "scales" else ["--rate", "1e-2"])
    output = tmp_path / "tuned"
    assert command(monkeypatch, folder, "--way", way, "--output", str(output), *quantized) == 0
    assert "2 steps, loss 0.6931 to" in capsys.readouterr().out
    found, _ = (low_rank_folder if way == "qlora" else models).load(str(output))
    layers = {name: each for name, each in found.named_modules() if isinstance(each, QuantLinear)}
    before, _ = tune.model_of(dataclasses.replace(TINY, model=folder), 2 if way in presets.QUANTIZED else 16)
    if way.startswith("qlora"):
        beside = low_rank_linear.layers(found)
        old = {name: each.codes for name, each in before.named_modules() if isinstance(each, QuantLinear)}
        same = [torch.equal(each.codes, old[name.removesuffix(".layer")]) for name, each in layers.items()]
        assert len(layers) == len(old) and len(beside) == (len(old) if way == "qlora" else 0)
        assert all(same) if way == "qlora" else not all(same)
    elif way == "scales":
        assert layers
        for name, each in layers.items():
            old = before.get_submodule(name)
            assert torch.equal(each.codes, old.codes) and not torch.equal(each.scale, old.scale)
    else:
        assert not layers and found.state_dict().keys() == before.state_dict().keys()


@pytest.mark.parametrize("way", ["full", "scales"])
def test_a_model_learns_from_a_judge_that_is_trained_first(way, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "tiny", dataclasses.replace(TINY, model=folder, samples=2))
    bits = ["--bits", "3"] if way == "scales" else []
    assert rewarded.main(["tiny", "--way", way, "--output", str(tmp_path / "out"), *bits]) == 0
    said = capsys.readouterr().out
    assert "the judge is right in" in said and "2 steps, mean reward" in said
    assert models.load(str(tmp_path / "out"))
    again = ["--judge", str(tmp_path / "out.training" / "judge"), "--output", str(tmp_path / "again"), *bits]
    if way == "full":
        assert rewarded.main(["tiny", *again]) == 0 and rewarded.main(["tiny", "--bits", "3", *again]) == 2


SCRIPT = """
import dataclasses, sys
from lib.alignment import presets, tune
from tests.test_alignment_study import TINY
presets.PRESETS["tiny"] = dataclasses.replace(TINY, model=sys.argv[1])
sys.exit(tune.main(["tiny", "--loss", "kto", "--output", sys.argv[2]]))
"""


@pytest.mark.long
@pytest.mark.usefixtures("warm")
def test_two_processes_of_the_command_train_what_one_trains(folder, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for name, command in (("two", launch), ("one", [sys.executable])):
        command = [*command, str(tmp_path / "script.py"), folder, str(tmp_path / name)]
        done = subprocess.run(command, cwd=files.ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (models.load(str(tmp_path / name))[0].state_dict() for name in ("one", "two"))
    assert all(torch.allclose(each, two[name], atol=2e-5) for name, each in one.items())


def test_the_command_refuses_what_it_cannot_do(folder, tmp_path, monkeypatch, capsys):
    wrong = {
        "'dpoo' is unknown": ["--loss", "dpoo"],
        "one of 2 to 8 by scales, qlora, qlora-back": ["--bits", "2"],
        "has no learning rate for 'lora'": ["--way", "lora"],
        "pairs 'mine' are unknown": ["--pairs", "mine"],
        "is not there": ["--pairs", str(tmp_path / "none.jsonl")],
    }
    for said, given in wrong.items():
        assert command(monkeypatch, folder, "--output", str(tmp_path / "out"), *given) == 2
        assert said in capsys.readouterr().err
    assert tune.main(["huge", "--output", str(tmp_path / "out")]) == 2
    assert "preset 'huge' is unknown" in capsys.readouterr().err
    few = dataclasses.replace(TINY, model=folder, train=50)
    with pytest.raises(ValueError, match=r"24 of 24 pairs of 'packaged' fit 400 tokens, and 57 are needed"):
        tune.data(few, tiny.tokenizer())


@pytest.mark.long
def test_a_study_goes_on_and_becomes_tables(folder, tmp_path, monkeypatch):
    preset, place = dataclasses.replace(TINY, model=folder), tmp_path / "study é"
    trained, train = [], judged_training.Study.train

    def counted(self, run):
        trained.append(run.name)
        if len(trained) == 7:
            raise KeyboardInterrupt
        return train(self, run)

    monkeypatch.setattr(judged_training.Study, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        study.run(preset, place)
    found = study.run(preset, place)
    assert len(found) == 9 and len(trained) == 4 + 9 + 1  # four trials, nine records, one of them begun twice
    assert {tuple(each["arm"].values()) for each in found} == {
        tuple(dataclasses.asdict(a).values()) for a in preset.arms
    }
    assert all(len(each["learned"]) == 4 and len(each["losses"]) == 2 and each["tasks"] for each in found)
    assert study.run(preset, place) == found and len(trained) == 14
    with pytest.raises(ValueError, match=r"holds another job .steps=2 there, 3 here"):
        study.run(dataclasses.replace(preset, steps=3), place)

    document = preference_tables.document(place, preset)
    tables = document["tables"]
    assert {"models", "learned", "pairs", "chosen by step", "rejected by step", "wins", "tasks"} == set(tables)
    assert [row[0] for row in tables["models"]["rows"]] == ["before, 16 bits", "before, 2 bits", "dpo", "kto",
                                                            "dpo, scales, 2 bits"]  # fmt: skip
    assert len(tables["pairs"]["rows"]) == 6 and all(len(row) == 7 for row in tables["pairs"]["rows"])
    assert json.dumps(document)


def test_a_study_without_records_is_refused_and_one_without_data_goes_without(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="0 trainings, no arm 3 seeds"):
        preference_tables.document(tmp_path, TINY)
    with pytest.raises(ValueError, match="learns by"):
        Arm("dpo", "lora", 4)
    absent = dataclasses.replace(TINY, tasks=(("packaged_instructions", 1), ("xstest", 2)), task_tokens=4)
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    found = judged_training._at_hand(absent, tiny.tokenizer())
    assert [*found] == ["packaged_instructions"] and "xstest is left out: " in capsys.readouterr().out
    (sample,) = found["packaged_instructions"].samples
    assert sample.requests[0].prompt.endswith("<assistant> ") and sample.requests[0].max_new_tokens <= 4
    with pytest.raises(ValueError, match="preset 'tiny' is unknown"):
        presets.by_name("tiny")
