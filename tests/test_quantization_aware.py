"""Students with few bits: gradients against autograd, the best state on unseen text, kills, saving, refusals."""

import copy

import pytest
import torch

from lib.distillation import code_linear, learnable_norm, quantization_aware
from lib.export import compressed_tensors
from lib.metrics import divergence
from lib.quantized.linear import QuantLinear
from lib.quantizers import codebook, rtn
from lib.sources import models
from lib.trainers import distill, divergences, preference_rows, preference_training
from tests import tiny
from tests.test_preferences import texts


@pytest.fixture(scope="module")
def original():
    return tiny.llama(num_hidden_layers=2)


@pytest.fixture
def student(original):
    made = copy.deepcopy(original)
    rtn.quantize_(made, bits=2, group_size=32)
    return made


KINDS = ["sliding_attention", "full_attention"]
FORWARD = divergences.FORWARD_KL
WINDOWS, UNSEEN = tiny.tokens(64, 24), tiny.tokens(70, 24)[64:]


def remembered(original):
    return divergence.remember(original, UNSEEN), UNSEEN


def train(student, original, **options):
    loss = distill.Distillation(original, divergence=divergences.JensenShannon())
    given = dict(steps=6, batch=16, micro_batch=16, learning_rate=0.02, every=2, held_out=remembered(original))
    return quantization_aware.train_(student, WINDOWS, loss, **given | options)


@pytest.mark.parametrize("kind", [{}, {"symmetric": True}, {"levels": "half"}, {"levels": "balanced"}])
def test_gradients_pass_rounding_and_stop_at_the_clip(kind):
    layer = torch.nn.Linear(64, 5)
    wrapped = torch.nn.ModuleList([layer])
    quantized = rtn.rtn(layer.weight.detach(), bits=2, group_size=32, **kind)
    part = code_linear.CodeLinear(QuantLinear(quantized, layer.bias), torch.float32, code_rate=3.0)
    with torch.no_grad():
        part.gamma.normal_(generator=torch.Generator().manual_seed(0))  # some far outside of the codes 0 to 3
        part.delta.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(1))
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    delta, gamma, other = (each.detach().clone().requires_grad_() for each in (part.delta, part.gamma, x))
    c = quantized.codes.float().view(5, 2, 32) + 3 * gamma
    q = c.clamp(-0.5, 3.5)  # autograd's own gradient of the clip
    q = q + (c.round().clamp(0, 3) - q).detach()
    zero = 2 if quantized.zero_point is None else quantized.zero_point.float()[..., None]
    W = (quantized.scale.float() * (1 + delta))[..., None] * (q - zero)
    wanted = other @ W.flatten(1).T + layer.bias
    found = part(x)
    torch.testing.assert_close(found, wanted)
    weighs = torch.arange(35.0).view(7, 5)
    ours = torch.autograd.grad((found * weighs).sum(), [part.delta, part.gamma, x])
    theirs = torch.autograd.grad((wanted * weighs).sum(), [delta, gamma, other])
    assert 0.2 < (ours[1] == 0).float().mean() < 0.9
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    part.settle_()
    torch.testing.assert_close(part.layer(x), found, rtol=0.02, atol=0.02)  # scales are stored in bfloat16
    del wrapped


def test_latents_begin_where_the_weights_lie_inside_their_cells(original, student):
    name = "model.layers.0.mlp.down_proj"
    layer, weight = student.get_submodule(name), original.get_submodule(name).weight.detach()
    part = code_linear.CodeLinear(layer, torch.float32, code_rate=1.0, original=weight)
    assert torch.equal(part.codes().view_as(layer.codes).to(torch.uint8), layer.codes)
    exact = weight.view_as(part.first) / layer.scale.float()[..., None] + layer.zero_point.float()[..., None]
    near = (exact - part.codes()).abs() < 0.49
    assert near.float().mean() > 0.8 and torch.allclose(part.first[near], exact[near])


@pytest.mark.parametrize("code_steps", [0.0, 0.02])
def test_the_best_state_on_unseen_text_is_the_one_that_stays(code_steps, original, student, tmp_path):
    before = {name: each.codes.clone() for name, each in student.named_modules() if isinstance(each, QuantLinear)}
    weights = {name: original.get_submodule(name).weight for name in before} if code_steps else None
    found = train(student, original, code_steps=code_steps, originals=weights, steps=8)
    assert sorted(found.divergences) == [0, 2, 4, 6, 8] and len(found.history.losses) == 8
    measured = divergence.compare(student, remembered(original)[0], UNSEEN).divergence.double().mean().item()
    assert measured == pytest.approx(min(found.divergences.values()), rel=1e-6)
    assert found.divergences[found.best] == min(found.divergences.values()) < found.divergences[0]
    moved = sum(int((student.get_submodule(name).codes != codes).sum()) for name, codes in before.items())
    assert found.moved == moved / sum(codes.numel() for codes in before.values())
    assert (moved > 0) == (code_steps > 0)
    student.tokenizer = tiny.tokenizer()
    reloaded, _ = models.load(str(compressed_tensors.save(student, student.tokenizer, tmp_path / "saved")))
    with torch.no_grad():
        assert torch.equal(reloaded(WINDOWS).logits, student(WINDOWS).logits)


def test_scales_alone_at_first_need_no_codes_and_patience_ends_the_training(original, student):
    found = train(student, original, learning_rate=5.0, steps=40, patience=2)  # far too fast: nothing is better
    assert found.best == 0 and len(found.history.losses) < 40 and found.moved == 0
    assert not any(isinstance(each, code_linear.CodeLinear) for each in student.modules())


def test_a_killed_training_ends_in_the_same_bytes(original, student, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization_aware, "CHECKPOINTS", 0)  # after every step
    other, killed = copy.deepcopy(student), copy.deepcopy(student)
    whole = train(student, original, code_steps=0.3)

    def kill(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    options = dict(code_steps=0.3, folder=tmp_path / "state")
    with pytest.raises(KeyboardInterrupt):
        train(killed, original, **options, on_step=kill)
    again = train(other, original, **options)
    assert again.divergences == whole.divergences and again.best == whole.best
    for name, layer in student.named_modules():
        if isinstance(layer, QuantLinear):
            twin = other.get_submodule(name)
            assert torch.equal(twin.codes, layer.codes) and torch.equal(twin.scale, layer.scale)
    with pytest.raises(ValueError, match="another job"):
        train(other, original, **options | {"code_steps": 0.2})


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi"])  # by weight, by 1 + weight, with a bias
def test_norms_learn_and_are_saved_as_they_were_trained(family, tmp_path):
    model = getattr(tiny, family)(num_hidden_layers=2, **({"layer_types": KINDS} if family == "gemma3" else {}))
    student = copy.deepcopy(model)
    rtn.quantize_(student, bits=2, group_size=32, candidates=8)
    before = {name: each.weight.clone() for name, each in learnable_norm.norms(student).items()}
    part = learnable_norm.LearnableNorm(learnable_norm.norms(copy.deepcopy(student))[next(iter(before))])
    with torch.no_grad():
        part.delta.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
        hidden = torch.randn(3, part.delta.numel(), generator=torch.Generator().manual_seed(1))
        expected = part(hidden)
        part.settle_()
        part.settle_()  # once more changes nothing
        torch.testing.assert_close(part.layer(hidden), expected)
    found = train(student, model, norms=True, steps=4, learning_rate=0.01)
    scales = copy.deepcopy(model)
    rtn.quantize_(scales, bits=2, group_size=32, candidates=8)
    alone = train(scales, model, steps=4, learning_rate=0.01)
    assert min(found.divergences.values()) < min(alone.divergences.values()) < alone.divergences[0]
    measured = divergence.compare(student, remembered(model)[0], UNSEEN).divergence.double().mean().item()
    assert measured == pytest.approx(min(found.divergences.values()), rel=1e-6)
    assert all((each.weight != before[name]).any() for name, each in learnable_norm.norms(student).items())
    assert all(each.requires_grad for each in learnable_norm.norms(student)[next(iter(before))].parameters())


def test_a_training_resumes_with_the_same_data_loss_and_bits_only(original, student, tmp_path):
    options = dict(steps=1, batch=4, micro_batch=4, held_out=None, folder=tmp_path / "state")
    train(copy.deepcopy(student), original, **options)
    loss, forward = (distill.Distillation(original, divergence=each) for each in (divergences.JensenShannon(), FORWARD))
    three = copy.deepcopy(original)
    rtn.quantize_(three, bits=3, group_size=32)
    given = {name: options[name] for name in ("steps", "batch", "micro_batch", "folder")} | {"learning_rate": 0.02}
    for made, data, what, named in (
        (student, WINDOWS[:32], loss, "data="),
        (student, WINDOWS, forward, "divergence=jensen_shannon there, None here; share=0.5 there, None here"),
        (three, WINDOWS, loss, "layers="),
    ):
        with pytest.raises(ValueError, match=rf"another job \(.*{named}"):
            quantization_aware.train_(copy.deepcopy(made), data, what, **given)


def test_what_cannot_be_trained_is_refused_and_nothing_changes(original, student, tmp_path):
    with pytest.raises(ValueError, match="no quantized layers"):
        train(copy.deepcopy(original), original)
    with pytest.raises(ValueError, match=r"code_steps=-1"):
        train(student, original, code_steps=-1)
    with pytest.raises(ValueError, match=r"'model.other', which is no quantized layer"):
        train(student, original, code_steps=0.1, originals={"model.other": torch.zeros(1)})
    with pytest.raises(ValueError, match="patience=0"):
        train(student, original, patience=0)
    coded = copy.deepcopy(original)
    codebook.quantize_(coded, bits=2, group_size=32)
    with pytest.raises(ValueError, match="come from a codebook"):
        train(coded, original, code_steps=0.1)
    codes = {name: each.codes.clone() for name, each in student.named_modules() if isinstance(each, QuantLinear)}

    def broken(model, batch):
        return distill.Distillation(original)(model, batch) * float("nan")

    with pytest.raises(ValueError, match="must be finite"):
        quantization_aware.train_(student, WINDOWS, broken, steps=2, code_steps=0.1)
    assert all(torch.equal(student.get_submodule(name).codes, kept) for name, kept in codes.items())


def test_a_student_of_two_bits_learns_preferences_and_stays_one(original, student):
    """Scales alone: no byte is added, and no code changes."""
    reference = copy.deepcopy(student)
    rows = preference_rows.pairs(texts(), tiny.tokenizer(), length=100).towards(reference)
    before = {name: each.codes.clone() for name, each in student.named_modules() if isinstance(each, QuantLinear)}
    loss = preference_training.Loss("dpo")
    options = dict(steps=10, batch=6, micro_batch=3, learning_rate=0.02, collate=preference_rows.collate)
    found = quantization_aware.train_(student, rows, loss, **options)
    margins = found.history.measures["margin"]
    assert margins[0] == pytest.approx(0, abs=1e-5) and margins[-1] > 0.02
    assert found.moved == 0 and all(
        torch.equal(student.get_submodule(name).codes, kept) for name, kept in before.items()
    )
