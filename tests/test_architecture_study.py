"""A study of architectures: its trainings in order, killed and resumed, shared by processes, refused."""

import contextlib
import dataclasses
import json
import types

import pytest
import torch

from lib import architectures, files
from lib.metrics import memory, peaks, seeds
from lib.trainers import architecture_study as study
from lib.trainers import from_scratch, presets
from lib.trainers.divergence import Diverged
from lib.trainers.history import History

PRESET = dataclasses.replace(
    presets.by_name("quick"), vocabulary=270, length=16, batch=4, micro_batch=4, tokens=192, unseen=4, every=64,
    sizes=presets.by_name("quick").sizes | {"hidden_size": 16, "intermediate_size": 16}, rates=(1e-3, 1e-2),
    arms=("plain", "headwise"), blocks=(1, 3, 2), seeds=(0, 1, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    ids = torch.randint(270, (8, 16), generator=torch.Generator().manual_seed(0))
    return from_scratch.Corpus(PRESET, range(270), types.SimpleNamespace(ids=ids, identity="little text"), ids[:4])


@pytest.fixture
def quick(corpus, monkeypatch):
    """Trainings that take no time, whose losses follow from their arguments; `calls` has these."""
    calls = []

    def trained(arm, corpus, *, seed, blocks, learning_rate, folder):
        calls.append((arm, blocks, seed, learning_rate))
        sizes = corpus.preset.sizes | {"vocab_size": 270, "num_hidden_layers": blocks}
        loss = 5 - 10 * learning_rate * (arm == "plain") + learning_rate - blocks / 10 + seed / 100
        history = History([6.0, 5.5, 5.0], [1.0, 2.0, 3.0], [1e-3] * 3, 64, 128)
        curve = [(64, 5.5), (192, loss)]
        model = architectures.build(arm, sizes, seed)
        return from_scratch.Trained(model, history, curve, [(tokens, nats / 3) for tokens, nats in curve])

    monkeypatch.setattr(from_scratch, "corpus", lambda preset: dataclasses.replace(corpus, preset=preset))
    monkeypatch.setattr(from_scratch, "train", trained)
    monkeypatch.setattr(peaks, "measure", lambda device: peaks.Peaks(1e9, {"float32": 1e9}))
    used = types.SimpleNamespace(score=types.SimpleNamespace(value=7))
    monkeypatch.setattr(memory, "call", lambda call, *args, device, **options: (call(*args, **options), used))
    return calls


def test_rates_first_then_the_noise_then_pairs_seed_by_seed_then_other_depths(quick, tmp_path):
    records = study.run(PRESET, tmp_path)
    assert quick[:4] == [(arm, 1, 0, rate) for rate in (1e-3, 1e-2) for arm in ("plain", "headwise")]
    best = study.best_rates(PRESET, records)
    assert best == {"plain": 1e-2, "headwise": 1e-3}  # each arm's own
    assert [call[:3] for call in quick[4:11]] == [
        ("plain", 1, 1), ("plain", 1, 2), ("plain", 2, 0), ("plain", 2, 1), ("headwise", 1, 1), ("plain", 2, 2),
        ("headwise", 1, 2),
    ]  # fmt: skip
    assert [call[:2] for call in quick[11:]] == [("plain", 3)] * 3 + [("headwise", 3)] * 3 + [("headwise", 2)] * 3
    assert all(call[3] == best[call[0]] for call in quick[4:]) and len(records) == len(quick) == 20
    expected = json.loads((tmp_path / "power.json").read_text())
    assert expected["deviation"] == pytest.approx(0.01 / 3) and expected["trainings before"] == 6
    assert expected["detectable"] == pytest.approx(seeds.detectable(2**0.5 * 0.01 / 3, 3))
    one = next(each for each in records if study.Run(**study._named(each)).name == "headwise-1-2-0.001")
    assert one["loss"] == one["unseen"][-1][1] == pytest.approx(4.921) and one["bits_per_byte"] == one["loss"] / 3
    assert (one["losses"], one["tokens"], one["seconds"], one["peak_bytes"]) == ([6.0, 5.5, 5.0], 192, 3.0, 7)
    assert one["flops_per_token"] > 2 * one["parameters"] - 2 * 270 * 16 and one["tokens_per_second"] == 64


def test_a_killed_study_goes_on_and_a_finished_one_trains_nothing(quick, tmp_path, monkeypatch):
    whole, inner = study.run(PRESET, tmp_path / "whole"), from_scratch.train

    def killed(*args, **options):
        if len(quick) == 20 + 7:
            raise KeyboardInterrupt
        return inner(*args, **options)

    monkeypatch.setattr(from_scratch, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        study.run(PRESET, tmp_path / "killed")
    assert len(study.records(tmp_path / "killed")) == 7
    monkeypatch.setattr(from_scratch, "train", inner)
    assert study.run(PRESET, tmp_path / "killed") == whole and len(quick) == 40
    assert study.run(PRESET, tmp_path / "killed", hours=0) == whole and len(quick) == 40


def test_a_training_inside_is_resumed_too(corpus, tmp_path, monkeypatch):
    """The folder of a run is the training's own, so that `loop.train_` finds its checkpoint there."""
    given = {}
    monkeypatch.setattr(from_scratch, "train", lambda *args, **options: given.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study._done(study.Run("plain", 1, 0, 1e-3), corpus, tmp_path)
    assert given["folder"] == tmp_path / "trainings" / "plain-1-0-0.001" and not study.records(tmp_path)


def test_what_another_process_trains_is_left_to_it(quick, corpus, tmp_path):
    run = study.Run("plain", 1, 0, 1e-3)
    place = tmp_path / "trainings" / run.name
    place.mkdir(parents=True)
    with other_process(place / ".lock"):
        assert not study._done(run, corpus, tmp_path) and not quick
    assert study._done(run, corpus, tmp_path) and not study._done(run, corpus, tmp_path) and len(quick) == 1


@contextlib.contextmanager
def other_process(path):
    import fcntl

    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def test_divergence_is_a_result_and_no_rate_to_choose(quick, tmp_path, monkeypatch):
    inner = from_scratch.train

    def diverges(arm, corpus, **options):
        if options["learning_rate"] == 1e-2:
            raise Diverged("the loss is nan at step 2")
        return inner(arm, corpus, **options)

    monkeypatch.setattr(from_scratch, "train", diverges)
    records = study.run(PRESET, tmp_path)
    assert study.best_rates(PRESET, records) == {"plain": 1e-3, "headwise": 1e-3}
    lost = [each for each in records if each["bits_per_byte"] is None]
    assert len(lost) == 2 and lost[0]["diverged"] == "the loss is nan at step 2"
    with pytest.raises(ValueError, match=r"'plain' diverged at every rate of 0\.01; lower"):
        study.best_rates(dataclasses.replace(PRESET, rates=(1e-2,)), records)


def test_refusals_before_anything_is_trained(quick, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"seeds=\[7\] were given for an interval; .* need 3 different ones"):
        study.run(dataclasses.replace(PRESET, seeds=(7,)), tmp_path)
    with pytest.raises(ValueError, match=r"'plain' was not trained with the learning rate 0\.001"):
        study.best_rates(PRESET, [])
    needed = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "check_writable", lambda path, size=0: needed.append(size))
        study.run(PRESET, tmp_path, hours=0)
    weights = architectures.build(
        "headwise", PRESET.sizes | {"vocab_size": 270, "num_hidden_layers": 1}, 0
    ).num_parameters()
    assert 20 * 4 * weights < needed[0] - 20 * (1 << 20) < 20 * 12 * weights  # up to three times as many blocks
    with pytest.raises(ValueError, match=r"holds another job \(tokens=192 there, 384 here\)"):
        study.run(dataclasses.replace(PRESET, tokens=384), tmp_path)
    assert not quick and study.main(["quik", "--folder", str(tmp_path)]) == 2
