"""Divergence against torch's own kl_div in float64, and what a remembered original must share with the living one."""

import copy

import psutil
import pytest
import torch
from torch import nn

from lib.metrics import divergence, perplexity
from lib.models import logits, reference
from tests import tiny


def _pair(build=tiny.llama):
    """An original and a copy of it with disturbed weights."""
    original = build()
    damaged = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in damaged.model.layers:
            weight = block.mlp.down_proj.weight if hasattr(block.mlp, "down_proj") else block.mlp.fc2.weight
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return original, damaged


def _logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits[:, :-1].double()


@pytest.mark.parametrize("build", [tiny.llama, tiny.phi, tiny.gemma2])
def test_equals_kl_div_in_float64(build):
    original, damaged = _pair(build)
    tokens = tiny.tokens(4, 24)
    p, q = _logits(original, tokens), _logits(damaged, tokens)
    expected = nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    scores = divergence.measure(damaged, original, tokens)
    assert expected.mean() > 1e-3
    assert scores["kl_divergence"].value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert scores["top1_agreement"].value == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert list(scores) == ["kl_divergence", "top1_agreement"]


def test_baselines_are_the_best_constant_predictions():
    original, damaged = _pair()
    tokens = tiny.tokens(4, 24)
    p = _logits(original, tokens).flatten(0, 1)
    average = p.softmax(-1).mean(0, keepdim=True).log().expand_as(p)
    constant = nn.functional.kl_div(average, p.log_softmax(-1), reduction="batchmean", log_target=True)
    scores = divergence.measure(damaged, original, tokens)
    assert scores["kl_divergence"].baseline == pytest.approx(float(constant), rel=1e-4)
    assert scores["top1_agreement"].baseline == pytest.approx(int(p.argmax(-1).bincount().max()) / len(p))


def test_errors_are_clustered_by_window():
    original, damaged = _pair()
    tokens = tiny.tokens(8, 24)
    found = divergence.compare(damaged, original, tokens)
    by_window = found.divergence.double().mean(1)
    score = divergence.measure(damaged, original, tokens)["kl_divergence"]
    assert score.n == 8
    assert score.stderr == pytest.approx(float(by_window.std(unbiased=False)) / 8**0.5, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_models_diverge_by_exactly_nothing(dtype):
    model, tokens = tiny.llama().to(dtype), tiny.tokens(3, 24)
    for original in (model, copy.deepcopy(model), divergence.remember(model, tokens)):
        scores = divergence.measure(model, original, tokens)
        assert scores["kl_divergence"].value == 0 and scores["top1_agreement"].value == 1


def test_quality_equals_the_separate_measurements_exactly():
    original, damaged = _pair()
    tokens = tiny.tokens(5, 24)
    scores = divergence.quality(damaged, original, tokens)
    assert scores["perplexity"] == perplexity.measure(damaged, tokens)
    separate = divergence.measure(damaged, original, tokens)
    assert {name: scores[name] for name in separate} == separate


def test_remembered_original_equals_the_living_one_and_outlives_it():
    original, damaged = _pair()
    tokens = tiny.tokens(5, 24)
    expected = divergence.quality(damaged, original, tokens)
    remembered = divergence.remember(original, tokens)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()  # compressed in place, as it were
    assert divergence.quality(damaged, remembered, tokens) == expected


def test_remembering_runs_the_original_once():
    original, damaged = _pair()
    tokens, calls = tiny.tokens(3, 24), []
    remembered = divergence.remember(original, tokens)
    original.model.norm.register_forward_hook(lambda *_: calls.append(1))
    divergence.quality(damaged, remembered, tokens)
    assert not calls


def test_the_first_windows_of_a_reference_will_do():
    original, damaged = _pair()
    tokens = tiny.tokens(5, 24)
    remembered = divergence.remember(original, tokens)
    expected = divergence.measure(damaged, original, tokens[:2])
    assert divergence.measure(damaged, remembered, tokens, windows=2) == expected


def test_save_and_load(tmp_path):
    original, damaged = _pair()
    tokens = tiny.tokens(4, 24)
    remembered = divergence.remember(original.bfloat16(), tokens)
    path = remembered.save(tmp_path / "some" / "reference.safetensors")
    again = reference.Reference.load(path, original)
    assert again.states.dtype == torch.bfloat16
    assert divergence.quality(damaged, again, tokens) == divergence.quality(damaged, remembered, tokens)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_kept_references_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    original, tokens, calls = tiny.llama(), tiny.tokens(3, 24), []
    first = divergence.remember(original, tokens, keep=True)
    original.model.norm.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(divergence.remember(original, tokens, keep=True).states, first.states)
    assert not calls
    divergence.remember(original, tiny.tokens(3, 24, seed=1), keep=True)  # other tokens: another file
    assert calls and len(list((tmp_path / "data" / "cache" / "references").iterdir())) == 2


def test_loading_for_another_model_is_refused(tmp_path):
    original, damaged = _pair()
    path = divergence.remember(original, tiny.tokens(2, 24)).save(tmp_path / "reference.safetensors")
    with pytest.raises(ValueError, match=r"remembers a model with fingerprint .* give the original"):
        reference.Reference.load(path, damaged)


def test_changed_or_cut_files_are_refused(tmp_path):
    original = tiny.llama()
    path = divergence.remember(original, tiny.tokens(2, 24)).save(tmp_path / "reference.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="has changed since it was written"):
        reference.Reference.load(path, original)
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match="is no reference"):
        reference.Reference.load(path, original)


def test_more_windows_than_memory_holds_states_of_are_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2 * 3 * 24 * 64 * 4 + 1}))
    model, tokens = tiny.llama(), tiny.tokens(4, 24)
    assert divergence.remember(model, tokens[:3]).states.shape == (3, 23, 64)
    with pytest.raises(MemoryError, match=r"reference of 4 windows of 24 tokens needs .* use about 3 windows or fewer"):
        divergence.remember(model, tokens)


def test_fingerprint_sees_what_no_weight_holds():
    """A kept reference of the same weights under another configuration is another reference."""
    one, other = tiny.llama(), tiny.llama(rms_norm_eps=0.3)
    assert reference.fingerprint(one) != reference.fingerprint(other)
    moved = tiny.llama()
    moved.config._name_or_path = "/elsewhere"
    assert reference.fingerprint(one) == reference.fingerprint(moved)


def test_fingerprint_sees_weights_and_names():
    one, other = tiny.llama(), tiny.llama()
    assert reference.fingerprint(one) == reference.fingerprint(other)
    with torch.no_grad():
        other.model.layers[3].mlp.up_proj.weight[0, 0] += 1
    assert reference.fingerprint(one) != reference.fingerprint(other)
    assert reference.fingerprint(one) != reference.fingerprint(tiny.llama().bfloat16())


def test_vocabularies_that_differ_are_refused():
    original, larger, tokens = tiny.llama(), tiny.llama(vocab_size=300), tiny.tokens(2, 24)
    for given in (original, divergence.remember(original, tokens)):
        with pytest.raises(ValueError, match="predicts 300 tokens and the reference 256"):
            divergence.measure(larger, given, tokens)


def test_other_tokens_than_remembered_are_refused():
    model = tiny.llama()
    remembered = divergence.remember(model, tiny.tokens(3, 24))
    for other in (tiny.tokens(3, 24, seed=1), tiny.tokens(4, 24), tiny.tokens(3, 16)):
        with pytest.raises(ValueError, match=r"remembers tokens \[3, 24\] .* remember the original on this text"):
            divergence.measure(model, remembered, other)


def test_something_else_as_reference_is_refused():
    with pytest.raises(TypeError, match="reference is a str"):
        divergence.measure(tiny.llama(), "original", tiny.tokens(2, 24))


def test_nan_names_the_model_at_fault():
    original, damaged = _pair()
    with torch.no_grad():
        original.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="logits of the original from window 0 on"):
        divergence.measure(damaged, original, tiny.tokens(2, 24))


def test_models_that_cannot_be_remembered_are_refused(monkeypatch):
    monkeypatch.setattr(logits, "projects", lambda *_: False)
    with pytest.raises(ValueError, match="pass a copy of the original model as reference"):
        divergence.remember(tiny.llama(), tiny.tokens(2, 24))


def test_gain_is_the_paired_fall_of_the_divergence():
    from lib.quantizers import rtn

    original, ids = tiny.llama(), tiny.tokens(6, 24)
    found = []
    for bits in (2, 4):
        model = copy.deepcopy(original)
        rtn.quantize_(model, bits=bits, group_size=32)
        found.append(divergence.compare(model, original, ids))
    gain = divergence.gain(*found)
    fall = (found[0].divergence - found[1].divergence).double().mean(1)
    assert gain.value == pytest.approx(fall.mean().item()) and gain.n == 6 and gain.higher_is_better
    assert gain.stderr == pytest.approx((fall.std() / 6**0.5).item(), rel=0.25)
    assert divergence.gain(found[0], found[0]).value == 0
    whole = divergence.scores(found[1], ids)
    assert whole == divergence.quality(model, original, ids)
    with pytest.raises(ValueError, match="pairs need the same ones"):
        divergence.gain(found[0], divergence.compare(model, original, ids[:3]))


def test_a_reference_is_written_over_nothing_else(tmp_path):
    model, tokens = tiny.llama(), tiny.tokens(1, 8)
    kept = divergence.remember(model, tokens)
    (tmp_path / "thesis.safetensors").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("thesis.safetensors", "folder"):
        with pytest.raises(FileExistsError, match="only a reference is written over"):
            kept.save(tmp_path / name)
    assert (tmp_path / "thesis.safetensors").read_text() == "mine"
    kept.save(tmp_path / "kept.safetensors")
    kept.save(tmp_path / "kept.safetensors")
