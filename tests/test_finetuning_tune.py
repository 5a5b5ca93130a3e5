"""The command that fine-tunes: each way ends in a model of its kind, a killed one goes on, what it plans can be run."""

import json
import shlex

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from transformers import AutoConfig

from lib.finetuning import adapter_folder, low_rank_folder, memory, tune, tune_plan
from lib.metrics.footprint import Footprint
from lib.quantized.linear import QuantLinear
from lib.quantizers import rtn
from lib.sources import models
from lib.trainers import loop
from tests import tiny

SMALL = ["--length", "48", "--batch", "4", "--steps", "3", "--unseen", "3", "--calibration", "2"]
SMALL += ["--group-size", "32", "--rank", "4", "--rate", "1e-2"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options for a tiny model and conversations of its own."""
    home = tmp_path_factory.mktemp("tune é")
    model = tiny.llama(num_hidden_layers=2)
    tiny.save(home / "model", model)
    rows = [{"prompt": "abc"[n % 3] * (n % 7 + 1), "completion": "yes no"[n % 2 * 3 :][:3]} for n in range(60)]
    (home / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(home / "model"), "--data", str(home / "talks.jsonl"), *SMALL]


def quantized_layers(model):
    return [each for each in model.modules() if isinstance(each, QuantLinear)]


WAYS = {
    "full": ([], lambda folder: not quantized_layers(models.load(folder)[0])),
    "dora": ([], lambda folder: not quantized_layers(models.load(folder)[0])),
    "scales": (["--bits", "2"], lambda folder: len(quantized_layers(models.load(folder)[0])) == 14),
    "qlora": (["--bits", "4", "--packed", "--loftq"], low_rank_folder.is_folder),
    "qlora back": (
        ["--bits", "4", "--merge", "back"],
        lambda folder: len(quantized_layers(models.load(folder)[0])) == 14,
    ),
    "lora apart": (["--merge", "apart"], lambda folder: adapter_folder.load(folder).rank == 4),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_each_way_ends_in_what_it_says(name, given, tmp_path, capsys):
    options, right = WAYS[name]
    assert tune.main([*given, "--output", str(tmp_path / "it"), "--way", name.split()[0], *options]) == 0
    said = capsys.readouterr().out
    assert "3 steps, loss" in said and ("3 unseen answers" in said) == (name != "lora apart")
    assert right(tmp_path / "it")


def test_a_killed_training_goes_on_and_ends_in_the_same_weights(given, tmp_path, monkeypatch):
    train, options = loop.train_, [*given, "--way", "scales", "--bits", "4"]
    assert tune.main([*options, "--output", str(tmp_path / "whole")]) == 0

    def killed(*arguments, **more):
        def on_step(step, loss):
            if step == 2:
                raise KeyboardInterrupt

        return train(*arguments, **more, every=0, on_step=on_step)

    monkeypatch.setattr(loop, "train_", killed)
    with pytest.raises(KeyboardInterrupt):
        tune.main([*options, "--output", str(tmp_path / "cut")])
    assert list((tmp_path / "cut.training" / "steps").glob("checkpoint-*")) and not (tmp_path / "cut").exists()
    monkeypatch.setattr(loop, "train_", train)
    assert tune.main([*options, "--output", str(tmp_path / "cut")]) == 0
    one, two = (models.load(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(each, two[name]) for name, each in one.items())


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_the_plan_says_the_memory_and_its_commands_are_understood(gpus, given, tmp_path, monkeypatch, capsys):
    more = ["--way", "qlora", "--bits", "4", "--merge", "back", "--without", "packaged_facts", "--packed"]
    predicted, known = [], Footprint(*[10**9] * 5, 0, 0, 0)
    monkeypatch.setattr(memory, "predict", lambda config, way, **sizes: predicted.append((way, sizes)) or known)
    output = tmp_path / "mine and yours"
    assert tune_plan.main([*given, *more, "--output", str(output), "--gpus", str(gpus)]) == 0
    said = capsys.readouterr().out
    job, _ = tune.asked(tune.parser().parse_args([*given, *more, "--output", "x"]))
    rows = 1 if gpus == 4 else 4
    assert "memory: 4 GB in each process" in said and "48 rows" in said and "0 of 48 conversations" in said
    wanted = {"batch": rows, "length": 48, "bits": 4, "group_size": 32, "rank": 4, "recompute": False, "passes": 1}
    assert predicted == [("qlora", wanted)]
    found = tune_plan.commands(job, output, gpus)
    assert len(found) == (2 if gpus == 4 else 1)
    for command in found.values():
        assert command in said
        words = shlex.split(command)
        if words[0] == "accelerate":
            known = launch_command_parser().parse_args(words[2:])
            assert (known.num_processes, known.module, known.training_script) == (4, True, "lib.finetuning.tune")
            assert known.multi_gpu != known.use_fsdp and (not known.use_fsdp or known.fsdp_version == "2")
            words = ["python", "-m", known.training_script, *known.training_script_args]
        assert words[:3] == ["python", "-m", "lib.finetuning.tune"]
        assert tune.asked(tune.parser().parse_args(words[3:])) == (job, output)


def test_what_does_not_fit_together_is_refused_before_the_work(given, tmp_path, monkeypatch, capsys):
    model = tiny.llama(num_hidden_layers=2)
    rtn.quantize_(model, bits=4, group_size=32)
    tiny.save(tmp_path / "plain", tiny.llama(num_hidden_layers=2))
    tune.save(model, tiny.tokenizer(), tmp_path / "quantized")
    monkeypatch.setattr(loop, "train_", None)
    monkeypatch.setattr(tune.gptq, "quantize_", None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    wrong = {
        "did you mean 'qlora'": ["--way", "qlor"],
        "bits=9": ["--bits", "9"],
        "merge='beside' of way='scales'": ["--way", "scales", "--bits", "4", "--merge", "beside"],
        "of a model without quantized": ["--way", "qlora"],
        "merge='back'": ["--merge", "back"],
        "of a model with quantized": ["--bits", "4"],
        "is quantized already": ["--model", str(tmp_path / "quantized"), "--bits", "4", "--way", "qlora"],
        "that the project did not write": ["--output", str(tmp_path / "mine")],
    }
    for said, options in wrong.items():
        assert tune.main([*given, "--output", str(tmp_path / "out"), *options]) == 2
        assert said in capsys.readouterr().err, said
    assert tune_plan.main([*given, "--output", "out", "--gpus", "8"]) == 2
    assert "8 GPUs for a batch of 4" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    assert tune.main([*given, "--output", str(tmp_path / "out")]) == 2 and "1 MB free" in capsys.readouterr().err
    stated = [AutoConfig.from_pretrained(tmp_path / name) for name in ("plain", "quantized")]
    assert [tune_plan._bits(each) for each in stated] == [None, 4]
