"""What a study takes, known before it begins: shapes, operations, disk, and commands that can be given."""

import dataclasses
import json
import math
import shlex

import pytest
import torch
from transformers import AutoTokenizer

from lib import architectures, files
from lib.architectures import controls
from lib.evaluation import architecture_scores
from lib.metrics import count
from lib.report import study_tables
from lib.sources import hub, hub_head, models, texts
from lib.trainers import architecture_study, byte_pairs, from_scratch, presets, study_plan
from lib.trainers.recipe import Recipe

PACKAGED = files.ROOT / "checkpoints" / "smollm2-135m-instruct"


@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_shapes_are_those_of_the_models(name):
    preset, found = presets.by_name(name), study_plan.of(name)
    first, depths = len(preset.arms) * len(preset.seeds), (len(preset.blocks) - 1) * len(preset.curves)
    tried = len(preset.arms) * len(preset.rates)
    both = len(preset.arms)  # the first seed at the best rate is one of those that chose it
    assert sum(each.trainings for each in found.models) == first + depths * len(preset.seeds) + tried - both
    assert found.steps == preset.tokens // (preset.batch * preset.length)
    for each in found.models:
        sizes = preset.sizes | {"vocab_size": preset.vocabulary or 49152, "num_hidden_layers": each.blocks}
        config = architectures.configuration(each.arm, sizes)
        assert each.weights == controls.weights(architectures.by_name(each.arm), config)
        # three times the products of a token, and of scores and values at half a row (Llama's in every arm)
        seen = controls.products(architectures.by_name(each.arm), config, preset.length // 2)
        attention = 2 * each.blocks * (preset.length // 2) * config.num_attention_heads * config.head_dim
        tokens = found.steps * preset.batch * preset.length
        assert each.flops == pytest.approx(6 * (seen + attention) * tokens, rel=1e-6)


def test_the_original_studys_size():
    found = study_plan.of("gpu")
    plain = next(each for each in found.models if (each.arm, each.blocks) == ("plain", 8))
    assert 75e6 < plain.weights < 110e6 and found.steps == 9536 and found.token_bytes == 10_000_000_000
    text = "\n".join(study_plan.lines(found, 4))
    assert "86 trainings of 9,536 steps of 262,144 tokens of cerebras/SlimPajama-627B" in text
    assert f"plain, 8 blocks: 5 x {plain.weights / 1e6:.2f} M weights" in text
    assert found.training_bytes == 16 * max(each.weights for each in found.models)


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_the_commands_are_understood(gpus, monkeypatch, capsys):
    asked = []
    calls = {"run": architecture_study, "score": architecture_scores, "times": architecture_scores}
    for name, module in calls.items():
        monkeypatch.setattr(module, name, lambda *args, name=name, **more: asked.append(name) or [])
    monkeypatch.setattr(study_tables, "document", lambda *args: asked.append("tables") or {"tables": {}})
    monkeypatch.setattr(study_tables, "Study", lambda *args: None)
    monkeypatch.setattr(files, "write_text", lambda path, text: path)
    mains = {each.__spec__.name: each.main for each in (architecture_study, architecture_scores, study_tables)}
    devices = []
    for command in study_plan.commands("gpu", gpus):
        if command == "wait":
            continue
        *setting, python, option, module = shlex.split(command)[: 4 if command.startswith("CUDA") else 3]
        devices += [each.removeprefix("CUDA_VISIBLE_DEVICES=") for each in setting]
        arguments = [each for each in shlex.split(command)[len(setting) + 3 :] if each != "&"]
        assert (python, option) == ("python", "-m") and mains[module](arguments) == 0
    assert asked == ["run"] * max(1, gpus) + ["score", "times", "tables"]
    assert devices == ([str(each) for each in range(gpus)] if gpus > 1 else [])
    assert (
        study_plan.main(["gpu", "--gpus", str(gpus)]) == 0
        and study_plan.commands("gpu", gpus)[0] in capsys.readouterr().out
    )


def test_what_is_no_study_is_refused(capsys, monkeypatch, tmp_path):
    assert study_plan.main(["gpus"]) == 2 and "did you mean 'gpu'" in capsys.readouterr().err
    assert study_plan.main(["gpu", "--gpus", "-1"]) == 2 and "gpus=-1; 0 and more" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"4 processes were started together for a study, .*; start one a GPU"):
        architecture_study.run("gpu", tmp_path)


@pytest.mark.long  # a vocabulary of 49,152
@pytest.mark.skipif(not PACKAGED.is_dir(), reason="the packaged model was not converted yet: make setup")
def test_the_gpu_preset_runs_on_a_stand_in_for_its_data(tmp_path, monkeypatch):
    """Its own text's name, tokenizer, rows, recipe and control of memory; a smaller model, and fewer tokens."""
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    preset = presets.by_name("gpu")
    monkeypatch.setattr(hub, "revision", lambda name: "0123456789abcdef")
    monkeypatch.setattr(models, "load", lambda: (None, AutoTokenizer.from_pretrained(PACKAGED)))
    folder, words = tmp_path / preset.text, texts.load("packaged", "train").documents
    folder.mkdir(parents=True)
    for split, documents in {"train": words[:40], "validation": words[40:]}.items():
        lines = (json.dumps({"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}}) for text in documents)
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    tokens, small = 4 * 64 * 2, {"hidden_size": 48, "intermediate_size": 64, "max_position_embeddings": 64}
    made = dataclasses.replace(
        preset, sizes=preset.sizes | small, length=64, batch=4, micro_batch=2, unseen=2, every=4 * 64, tokens=tokens,
        recipe=Recipe(**dataclasses.asdict(preset.recipe) | {"compile": "eager"}),
    )  # fmt: skip
    corpus = from_scratch.corpus(made)
    assert len(corpus.tokenizer) == study_plan.PACKAGED and len(corpus.rows) * 64 < 5 * tokens
    read = sum(path.stat().st_size for path in (tmp_path / "home" / "data" / "cache" / "hub").glob("*train*.jsonl"))
    assert 0 < read < hub_head.BYTES * 5 * tokens + max(map(len, words))
    found = from_scratch.train("headwise", corpus, blocks=1, tokens=tokens, folder=tmp_path / "run")
    assert len(found.history.losses) == 2 and found.history.losses[0] == pytest.approx(math.log(49152), abs=0.5)
    assert next(found.model.parameters()).dtype == torch.float32
    assert count.parameters(found.model) == sum(each.numel() for each in found.model.parameters())
    byte_pairs.check(found.model, corpus.tokenizer)
