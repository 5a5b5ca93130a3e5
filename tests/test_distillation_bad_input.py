"""What no student can learn from is refused before the work, or leaves the best state: each with what to do."""

import copy
import dataclasses
import json

import psutil
import pytest
import torch

from lib.distillation import checks, ladder, pipeline, quantization_aware
from lib.metrics import divergence
from lib.quantized.linear import QuantLinear
from lib.quantizers import rtn
from lib.sources import models
from lib.trainers import distill
from tests import tiny
from tests.test_distillation_pipeline import folder, home, small  # noqa: F401
from tests.test_quantization_aware import UNSEEN, WINDOWS, original, remembered, student  # noqa: F401


def codes(model):
    return {name: each.scale.clone() for name, each in model.named_modules() if isinstance(each, QuantLinear)}


def test_a_teacher_with_another_tokenizer_is_refused(original, student):  # noqa: F811
    teacher, before = copy.deepcopy(original), codes(student)
    teacher.tokenizer, student.tokenizer = tiny.tokenizer(), tiny.tokenizer()
    teacher.tokenizer.add_tokens(["<another>"])
    with pytest.raises(ValueError, match=r"the teacher's tokenizer \(.*\) is not the model's"):
        quantization_aware.train_(student, WINDOWS, distill.Distillation(teacher), steps=1)
    other = tiny.llama(num_hidden_layers=1, vocab_size=200)
    with pytest.raises(ValueError, match="predicts 200 tokens and the model 256"):
        quantization_aware.train_(student, WINDOWS, distill.Distillation(other), steps=1)
    assert all(torch.equal(each, before[name]) for name, each in codes(student).items())


@pytest.mark.parametrize("kept", [True, False])
def test_a_loss_that_is_no_number_leaves_the_best_state(kept, original, student, tmp_path):  # noqa: F811
    """Three good steps, then none: what stays is the state of step 2, the last that was measured."""
    good, steps = distill.Distillation(original), []

    def loss(model, batch):
        return good(model, batch) * (float("nan") if len(steps) == 3 else 1)

    options = dict(batch=16, micro_batch=16, learning_rate=0.02, every=2, held_out=remembered(original))
    start = codes(student)
    options |= {"folder": tmp_path / "é a" if kept else None}
    with pytest.raises(ValueError, match=r"must be finite.*best state on unseen text, that of step 2"):
        quantization_aware.train_(student, WINDOWS, loss, steps=6, on_step=lambda *step: steps.append(step), **options)
    assert len(steps) == 3 and not torch.equal(*(next(iter(each.values())) for each in (codes(student), start)))
    found = divergence.compare(student, remembered(original)[0], UNSEEN).divergence.double().mean().item()
    if kept:
        curve = json.loads((tmp_path / "é a" / "held_out" / "held_out.json").read_text())
        assert curve["2"] < curve["0"] and (tmp_path / "é a" / "held_out" / "best.safetensors").exists()
        assert found == pytest.approx(curve["2"], rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bits": 9}, "bits=9"),
        ({"bits": 1}, "bits=1"),
        ({"group_size": 48}, "group_size=48"),
        ({"levels": "third"}, "levels='third'"),
        ({"linear": "lqs", "code_steps": 0.1}, "[Dd]id you mean 'lsq'"),
        ({"divergence": "forward"}, "divergence='forward'"),
        ({"start": "codebook", "code_steps": 0.1}, "levels in even steps"),
        ({"start": "gptq", "levels": "pairs", "code_steps": 0.1}, "levels='pairs' and code_steps=0.1 .*in even steps"),
        ({"start": "rtn", "levels": "pairs"}, "levels='pairs' of a grid; allowed are"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused_before_anything_is_written(changed, said, small, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match=said):
        pipeline.run(dataclasses.replace(small, **changed), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_than_memory_is_said_before_the_work_with_what_fits(small, tmp_path, monkeypatch):  # noqa: F811
    whole = sum(each.numel() for each in models.load(small.model)[0].parameters())
    count = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)  # attention and MLP of two blocks
    needed = 4 * whole + 28 * count
    free = type("Free", (), {"available": needed - 1})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(MemoryError, match=rf"{count:,} codes .*; scales alone \(code_steps=0\) need .*codes fit"):
        pipeline.run(dataclasses.replace(small, code_steps=0.1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    free.available = 4 * whole
    with pytest.raises(MemoryError, match=r"free; about .* codes fit; take those, or a smaller model"):
        pipeline.run(small, tmp_path / "run")


def test_a_run_goes_on_with_its_own_data_loss_and_bits_only(small, tmp_path):  # noqa: F811
    found, _ = models.load(small.model)
    windows = pipeline.windows_of(found, small)
    pipeline._same(tmp_path / "run", small, found, windows)
    pipeline._same(tmp_path / "run", small, found, windows)
    other = dataclasses.replace(windows, training=windows.training.flip(0))
    for made, given, said in (
        (dataclasses.replace(small, bits=3), windows, r"bits=2 there, 3 here"),
        (dataclasses.replace(small, divergence="cakld"), windows, r"divergence=forward_kl there, cakld here"),
        (small, other, r"training=\w{12} there, \w{12} here"),
    ):
        with pytest.raises(ValueError, match=rf"another job \(.*{said}"):
            pipeline._same(tmp_path / "run", made, found, given)


def test_what_a_step_worked_counts_also_after_a_kill(tmp_path, monkeypatch):
    """The arm of post-training gets these seconds: an interrupted run must not look cheaper than it was."""
    clock = iter([0.0, 40.0, 100.0, 107.0])
    monkeypatch.setattr(ladder.timing, "worked", lambda: next(clock))

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ladder.Ladder(tmp_path).timed("training", stopped)
    again = ladder.Ladder(tmp_path)
    assert again.timed("training", lambda: "done") == "done"
    assert ladder.Ladder(tmp_path).kept["seconds"] == {"training": 47.0}
    assert (
        again.planned("arm", lambda: {"windows": 3}) == ladder.Ladder(tmp_path).planned("arm", dict) == {"windows": 3}
    )


def test_a_quantized_model_is_no_teacher_of_a_pipeline(small, tmp_path):  # noqa: F811
    model, tokenizer = models.load(small.model)
    rtn.quantize_(model, bits=2, group_size=32)
    with pytest.raises(ValueError, match="is a QuantLinear already; load the original"):
        checks.before(model, small)
    assert tokenizer is not None
