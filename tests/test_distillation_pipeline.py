"""The pipeline of distillation on a tiny model: its ladder, its student, its windows, what it refuses."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from lib.distillation import judging, pipeline, post_training, presets, training_text
from lib.metrics import divergence
from lib.quantized.linear import QuantLinear
from lib.quantizers import gptq_signround
from lib.sources import conversations, models, texts
from lib.trainers import divergences
from tests import tiny

WORDS = [
    "the",
    "grid",
    "of",
    "a",
    "group",
    "has",
    "four",
    "levels",
    "and",
    "one",
    "scale",
    "which",
    "learns",
    "what",
    "all",
    "blocks",
    "together",
    "need",
]


def write(path, seed):
    order = torch.randint(len(WORDS), (900,), generator=torch.Generator().manual_seed(seed)).tolist()
    path.write_text("\n".join(" ".join(WORDS[each] for each in order[at : at + 12]) for at in range(0, 900, 12)))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("é a")
    tiny.save(made / "model", tiny.llama(num_hidden_layers=2, max_position_embeddings=64))
    return made


@pytest.fixture(scope="module")
def small(folder):
    named = {write(folder / f"{name}.txt", seed): share for seed, (name, share) in enumerate({"a": 3, "b": 1}.items())}
    return presets.Preset(
        str(folder / "model"), named, {next(iter(named)): "test"}, group_size=32, start="rtn", calibration=2, length=24,
        windows=48, batch=8, micro_batch=8, learning_rate=0.02, unseen=4, every=2, judge=4,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))


def test_each_rung_is_measured_and_the_student_is_what_was_trained(small, tmp_path, monkeypatch):
    rows = pipeline.run(small, tmp_path / "run")
    assert [row["rung"] for row in rows] == ["start", "distilled"]
    assert rows[1]["kl"] < 0.9 * rows[0]["kl"] and rows[0]["n"] == len(rows[0]["divergences"]) > 1
    original, _ = models.load(small.model)
    student, _ = models.load(str(tmp_path / "run" / pipeline.STUDENT))
    text = next(iter(small.judged))
    tokens = texts.tokens(texts.load(text, "test"), original, count=4, length=24)
    again = divergence.compare(student, original, tokens)
    assert again.divergence.double().mean().item() == pytest.approx(rows[1]["kl"], rel=1e-5)
    with torch.no_grad():
        scored = original(tokens).logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).double()
    assert rows[1]["ratio"] == pytest.approx(float(np.exp(again.nll.double().mean() + scored.mean())), rel=1e-4)
    gain, verdict = judging.gains(rows, "start", "distilled")[text]
    assert gain.value == pytest.approx(rows[0]["kl"] - rows[1]["kl"]) and verdict.mean == gain.value
    with pytest.raises(ValueError, match="measured were start, distilled"):
        judging.gains(rows, "start", "other")
    ladder = pipeline.Ladder(tmp_path / "run")
    assert ladder.kept["moved"] == 0 and ladder.kept["seconds"].keys() == {"start", "training"}
    assert "start" in str(ladder) and not (tmp_path / "run" / pipeline.TRAINING).exists()
    monkeypatch.setattr(pipeline, "start", None)  # a finished run works no more
    assert pipeline.run(small, tmp_path / "run") == rows
    monkeypatch.setattr(pipeline, "ADAPTING", 0.01)
    assert pipeline.run(small, tmp_path / "run", control=True)[:2] == rows
    control = pipeline.Ladder(tmp_path / "run").rows[2]  # the text that it learned, and it is another model now
    assert control["rung"] == "control" and control["ratio"] < 1 and control["kl"] > 0
    with pytest.raises(ValueError, match=r"another job \(code_steps=0.0 there, 0.1 here\)"):
        pipeline.run(dataclasses.replace(small, code_steps=0.1), tmp_path / "run")


def test_the_same_minutes_of_post_training_are_a_rung(small, tmp_path, monkeypatch):
    """More windows and more steps of the same quantizer; its model is kept, so that it can be judged beside."""
    made = dataclasses.replace(small, start="gptq_signround", rounding=2, windows=16)
    monkeypatch.setattr(post_training, "plan", lambda *_: {"factor": 3.0, "calibration": 6, "rounding": 5})
    rows = pipeline.run(made, tmp_path / "run", post_trained=True)
    assert [row["rung"] for row in rows] == ["start", "distilled", "post-training"]
    original, _ = models.load(made.model)
    windows = pipeline.windows_of(original, made)
    more = torch.cat([windows.calibration, windows.training[:4]])
    expected = copy.deepcopy(original)
    gptq_signround.quantize_(expected, more, bits=2, group_size=32, levels="half", steps=5, batch=2, seed=0)
    kept, _ = models.load(str(tmp_path / "run" / pipeline.POST_TRAINED))
    assert all(torch.equal(kept.get_submodule(name).codes, each.codes)
               for name, each in expected.named_modules() if isinstance(each, QuantLinear))  # fmt: skip
    assert not (tmp_path / "run" / "post_training-state").exists()
    assert pipeline.run(made, tmp_path / "run", post_trained=True) == rows
    with pytest.raises(ValueError, match="start='rtn' takes no longer"):
        pipeline.run(small, tmp_path / "other", post_trained=True)


def test_codes_move_where_the_preset_lets_them(small, tmp_path):
    made = dataclasses.replace(small, code_steps=0.02, divergence="cakld", levels="integer")
    original, _ = models.load(made.model)
    windows = pipeline.windows_of(original, made)
    student = pipeline.start(original, made, windows, None)
    parts = [each for each in student.modules() if isinstance(each, QuantLinear)]
    assert len(parts) == 14 and {(each.bits, each.levels, each.group_size) for each in parts} == {(2, "integer", 32)}
    loss = pipeline.divergence_of(original, made, windows.training)
    assert isinstance(loss, divergences.ConfidenceAware) and 0 < loss.coefficient < 1
    seen = []
    found = pipeline.train_(student, original, made, windows, on_step=lambda *step: seen.append(step))
    assert found.moved > 0 and len(seen) == 6 and found.divergences[found.best] < found.divergences[0]


def test_no_window_is_in_two_parts_and_the_shares_hold(small):
    original, _ = models.load(small.model)
    made = training_text.draw(original, small.texts, calibration=3, unseen=4, training=41, length=24, seed=5)
    assert [len(getattr(made, part)) for part in training_text.PARTS] == [3, 4, 41]
    assert list(made.counts.values()) == [2 + 3 + 31, 1 + 1 + 10]
    everything = torch.cat([made.calibration, made.unseen, made.training])
    # windows of random words: equal ones would be the same window
    assert len({tuple(row) for row in everything.tolist()}) == 48
    for name, seed in ((name, 5) for name in small.texts):
        own = {tuple(row) for row in texts.tokens(texts.load(name, "train"), original, length=24).tolist()}
        assert sum(tuple(row) in own for row in everything.tolist()) >= made.counts[name], seed
    assert training_text.counts({"a": 1, "b": 1, "c": 1}, 5) == {"a": 2, "b": 2, "c": 1}
    first, counts = next(iter(small.texts)), {"calibration": 3, "unseen": 4, "training": 25}
    others = training_text.draw(original, small.texts, {first: 1.0}, **counts, length=24, seed=5)
    assert torch.equal(others.calibration, made.calibration) and torch.equal(others.unseen, made.unseen)
    assert list(others.counts.values()) == [2 + 3 + 25, 1 + 1]  # what is learned from has shares of its own
    with pytest.raises(ValueError, match="a share above 0"):
        training_text.draw(original, {"a": 0.0}, calibration=1, unseen=1, training=1, length=24, seed=0)
    with pytest.raises(ValueError, match="were asked"):
        training_text.draw(original, small.texts, calibration=1, unseen=1, training=9999, length=24, seed=0)


def test_chats_are_windows_of_what_the_template_writes(small):
    original, tokenizer = models.load(small.model)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    found = training_text.chats(original, "packaged", 3, 24, seed=1)
    assert found.shape == (3, 24) and not torch.equal(found, training_text.chats(original, "packaged", 3, 24, seed=2))
    text = tokenizer.decode(found.flatten())
    each = next(one for one in conversations.read("packaged", split="train") if one.turns[0].text in text)
    assert f"[user]{each.turns[0].text}" in text and tokenizer.eos_token_id in found.flatten().tolist()
    shares = {**small.texts, f"{training_text.CHATS}packaged": 1}
    made = training_text.draw(original, shares, calibration=5, unseen=5, training=5, length=24, seed=5)
    assert made.counts["chats:packaged"] == 2 and len(made.calibration) == 5  # none to calibrate on
    assert not any("[user]" in tokenizer.decode(window) for window in made.calibration)
    alone = training_text.draw(
        original, {f"{training_text.CHATS}packaged": 1}, calibration=1, unseen=1, training=1, length=24, seed=5
    )
    assert alone.counts == {"chats:packaged": 3}  # where there is nothing else
    with pytest.raises(ValueError, match="9999999 were asked"):
        training_text.chats(original, "packaged", 9999999, 24, seed=1)


def test_the_command_tells_what_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    assert pipeline.main(["quik"]) == 2
    assert "did you mean 'quick'" in capsys.readouterr().err.replace("Did", "did")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_are_whole(name):
    made = presets.by_name(name)
    assert made.windows % made.batch == 0 and made.batch % made.micro_batch == 0
    assert sum(made.texts.values()) == pytest.approx(1) and made.divergence in divergences.DIVERGENCES
    json.dumps(dataclasses.asdict(made))
