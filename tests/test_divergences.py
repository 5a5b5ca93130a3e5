"""Divergences and their gradients against autograd in float64, the coefficient, and masks shifted with the logits."""

import math

import pytest
import torch

from lib.trainers import confidence, distill, divergences, minibatch, top_k
from tests import tiny
from tests.test_trainers_losses import batch, gradients, pair, same, whole

KINDS = {
    "forward_kl": (divergences.ForwardKL(), lambda p, q: (p * (p / q).log()).sum(-1)),
    "reverse_kl": (divergences.ReverseKL(), lambda p, q: (q * (q / p).log()).sum(-1)),
    "cakld": (
        divergences.ConfidenceAware(0.3),
        lambda p, q: 0.3 * (q * (q / p).log()).sum(-1) + 0.7 * (p * (p / q).log()).sum(-1),
    ),
    "jensen_shannon": (
        divergences.JensenShannon(0.4),
        lambda p, q: (0.4 * p * (p / (m := 0.4 * p + 0.6 * q)).log() + 0.6 * q * (q / m).log()).sum(-1),
    ),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_a_distillation_by_each_divergence_and_all_its_gradients(name, T):
    kind, formula = KINDS[name]
    teacher, model = pair()
    data, loss = batch(), distill.Distillation(teacher, temperature=T, divergence=kind)
    with torch.no_grad():
        p = (whole(teacher, data["input_ids"]) / T).softmax(-1)
    wanted = T**2 * formula(p, (whole(model, data["input_ids"]) / T).softmax(-1)).mean()
    found = loss(model, data)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    same(gradients(model, found), gradients(model, wanted))


@pytest.mark.parametrize("name", KINDS)
def test_kept_answers_by_each_divergence(name, tmp_path):
    kind, formula = KINDS[name]
    teacher, model = pair(torch.float32)
    data = batch()
    kept = top_k.cache_teacher(teacher, data["input_ids"], k=12, folder=tmp_path).towards(kind)
    ids, p = kept.ids[data["window"]].flatten(0, 1).long(), kept.logp[data["window"]].flatten(0, 1).float().exp()
    q = whole(model, data["input_ids"]).softmax(-1).gather(-1, ids)
    outcomes = [torch.cat([each, 1 - each.sum(-1, keepdim=True)], -1) for each in (p, q)]
    wanted, found = formula(*outcomes).mean(), kept(model, data)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    ours, theirs = gradients(model, found), gradients(model, wanted)
    assert all(torch.allclose(ours[each], theirs[each], rtol=1e-3, atol=1e-6) for each in theirs)
    identities = {str(kept.towards(each).identity) for each, _ in KINDS.values()}
    assert len(identities) == 4 and kept.towards(divergences.ForwardKL()).identity["loss"] == "top_k"


@pytest.mark.parametrize("name", KINDS)
def test_distributions_far_apart_stay_finite(name):
    far = torch.tensor([[0.0, 400.0, -400.0], [300.0, 0.0, 0.0]])
    loss, gradient = KINDS[name][0](far.clone(), -far)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and loss > 0
    if name == "jensen_shannon":
        assert loss <= 2 * math.log(2) + 1e-6
    same_loss, none = KINDS[name][0](far.clone(), far + 5)
    assert abs(same_loss) < 1e-4 and none.abs().max() < 1e-4


def answers(count=5):
    """Rows of 20 tokens of which the last 8 are an answer."""
    ids = tiny.tokens(count, 20)
    return [{"input_ids": row, "labels": row.masked_fill(torch.arange(20) < 12, minibatch.IGNORED)} for row in ids]


def test_only_answers_count_and_the_mask_is_shifted_with_the_logits():
    """The token at place t is predicted at t - 1: a mask that is not shifted would count the prediction after it."""
    teacher, model = pair()
    rows = answers()
    data = minibatch.collate(rows)
    with torch.no_grad():
        p, q = (each(input_ids=data["input_ids"]).logits.log_softmax(-1) for each in (teacher, model))
    each = (p.exp() * (p - q)).sum(-1)
    found = distill.Distillation(teacher)(model, data).item()
    assert found == pytest.approx(each[:, 11:19].mean().item(), rel=1e-6)
    assert found != pytest.approx(each[:, 12:].mean().item(), rel=1e-3)  # the same mask, not shifted


def test_the_coefficient_is_the_probability_of_the_texts_own_answers():
    teacher, _ = pair(torch.float32)
    rows = answers()
    ids = torch.stack([row["input_ids"] for row in rows])
    with torch.no_grad():
        p = teacher(input_ids=ids).logits.softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    found = confidence.measure(teacher, rows)
    shares = p[:, 11:].mean(-1)
    assert found.value == pytest.approx(shares.mean().item(), rel=1e-5) and found.n == 5
    assert found.stderr == pytest.approx(shares.std().item() / 5**0.5, rel=1e-4)
    assert confidence.measure(teacher, ids).value == pytest.approx(p.mean().item(), rel=1e-5)


def test_what_is_no_divergence_is_refused():
    teacher, _ = pair(torch.float32)
    with pytest.raises(ValueError, match=r"'forward' is unknown.*forward_kl"):
        divergences.by_name("forward")
    for kind, name in (("cakld", "coefficient"), ("jensen_shannon", "share")):
        with pytest.raises(ValueError, match=f"{name}=1.5"):
            divergences.by_name(kind, **{name: 1.5})
    with pytest.raises(ValueError, match="makes both terms zero"):
        divergences.JensenShannon(1)
    with pytest.raises(ValueError, match="a stream"):
        confidence.measure(teacher, iter(answers()))
    nothing = [{**row, "labels": torch.full((20,), minibatch.IGNORED)} for row in answers(2)]
    with pytest.raises(ValueError, match="none of the 2 rows"):
        confidence.measure(teacher, nothing)
