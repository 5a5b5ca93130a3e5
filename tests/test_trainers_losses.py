"""The losses against autograd over whole logits in float64, and what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics import divergence, perplexity
from lib.pruners import depth
from lib.trainers import adapters, chunked, distill, next_token, prefix, top_k
from tests import tiny


def pair(dtype=torch.float64, **overrides):
    """A teacher and a pupil with a block less."""
    teacher, pupil = tiny.llama(**overrides).to(dtype), tiny.llama(**overrides).to(dtype)
    return teacher, depth.drop_blocks_(pupil, [2])


def batch(count=3, length=20):
    return {"input_ids": tiny.tokens(count, length), "window": torch.arange(count)}


def whole(model, tokens):
    return model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)


def reference_next(model, tokens):
    return torch.nn.functional.cross_entropy(whole(model, tokens), tokens[:, 1:].flatten())


def reference_kl(teacher, model, tokens, T=1.0):
    with torch.no_grad():
        p = (whole(teacher, tokens) / T).log_softmax(-1)
    return T**2 * (p.exp() * (p - (whole(model, tokens) / T).log_softmax(-1))).sum(-1).mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-8), name


@pytest.mark.parametrize("tied", [True, False])
def test_next_token_loss_and_all_its_gradients(tied, monkeypatch):
    monkeypatch.setattr("lib.models.logits.CHUNK_BYTES", 4 * 256 * 7)  # several chunks, the last one shorter
    _, model = pair(tie_word_embeddings=tied)
    data = batch()
    found = next_token.loss(model, data)
    wanted = reference_next(model, data["input_ids"])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    same(gradients(model, found), gradients(model, wanted))
    score = perplexity.measure(model, data["input_ids"])
    assert found.exp().item() == pytest.approx(score.value, rel=1e-5)


@pytest.mark.parametrize("T", [1.0, 2.5])
def test_distillation_and_all_its_gradients(T):
    teacher, model = pair()
    data, loss = batch(), distill.Distillation(teacher, temperature=T)
    loss.check(model)
    found, wanted = loss(model, data), reference_kl(teacher, model, data["input_ids"], T)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    same(gradients(model, found), gradients(model, wanted))
    if T == 1:
        score = divergence.measure(model, teacher, data["input_ids"])["kl_divergence"]
        assert found.item() == pytest.approx(score.value, rel=1e-5)
    assert all(each.grad is None for each in teacher.parameters())


def test_families_that_cap_or_scale_their_logits():
    model = tiny.gemma2().double()
    data = batch()
    same(gradients(model, next_token.loss(model, data)), gradients(model, reference_next(model, data["input_ids"])))


def test_only_what_is_trained_gets_a_gradient():
    teacher, model = pair()
    with adapters.full_(model, first=2):
        found = gradients(model, distill.Distillation(teacher)(model, batch()))
    assert found and all(name.startswith(("model.layers.2.", "model.norm")) for name in found)


def test_a_loss_may_be_scaled_before_its_backward_pass():
    _, model = pair()
    data = batch()
    whole_loss, half = (
        gradients(model, next_token.loss(model, data)),
        gradients(model, next_token.loss(model, data) / 2),
    )
    assert all(torch.allclose(half[name], whole_loss[name] / 2) for name in half)


@pytest.mark.parametrize(("first", "shared"), [(2, 2), (1, 1), (0, 0)])
def test_shared_blocks_change_neither_loss_nor_gradients(first, shared):
    teacher, model = pair()
    data, loss = batch(), distill.Distillation(teacher)
    with adapters.full_(model, first=first):
        alone = loss(model, data)
        wanted = gradients(model, alone)
        loss.check(model)
        assert prefix.shared(teacher, model) == shared
        ran = []
        hook = model.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
        found = loss(model, data)
        hook.remove()
        assert found.item() == alone.item()
        same(gradients(model, found), wanted)
    assert "forward" not in vars(model.model.layers[0]) and "forward" not in vars(teacher.model.layers[shared])


def test_a_changed_weight_ends_what_is_shared():
    teacher, model = pair()
    with adapters.full_(model, first=2):
        assert prefix.shared(teacher, model) == 2
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
        assert prefix.shared(teacher, model) == 1
        model.get_input_embeddings().weight.data[0, 0] += 1
        assert prefix.shared(teacher, model) == 0


@pytest.mark.parametrize("what", ["weight", "module", "trained"])
def test_what_was_shared_at_the_check_is_not_taken_for_granted(what):
    """The student's first block changes between the check and the loss."""
    teacher, pupil = pair()
    loss = distill.Distillation(teacher)
    pupil.requires_grad_(False)
    loss.check(pupil)
    assert loss._common(pupil) == 2
    block = pupil.model.layers[0]
    with torch.no_grad():
        if what == "weight":
            block.mlp.up_proj.weight.mul_(1.5)
        elif what == "module":
            block.mlp.up_proj = torch.nn.Linear(64, 128, bias=False).double()
        else:
            block.requires_grad_(True)
    found, wanted = loss(pupil, batch()), reference_kl(teacher, pupil, batch()["input_ids"])
    assert loss._common(pupil) == 0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)


def test_kept_answers_are_the_divergence_over_k_outcomes_and_the_rest(tmp_path):
    teacher, model = pair(torch.float32)
    data = batch()
    kept = top_k.cache_teacher(teacher, data["input_ids"], k=12, folder=tmp_path)
    kept.check(model)
    found = kept(model, data)
    with torch.no_grad():
        p = whole(teacher, data["input_ids"]).softmax(-1)
    ids = p.topk(12).indices
    probability = kept.logp[data["window"]].float().flatten(0, 1).exp()
    assert torch.equal(kept.ids[data["window"]].flatten(0, 1).long(), ids)
    assert torch.allclose(probability, p.gather(-1, ids), rtol=2e-3)  # kept in float16
    q = whole(model, data["input_ids"]).softmax(-1)
    outcomes = [(probability, q.gather(-1, ids))]
    outcomes.append((1 - probability.sum(-1, keepdim=True), 1 - q.gather(-1, ids).sum(-1, keepdim=True)))
    wanted = sum((a * (a / b).log()).sum() for a, b in outcomes) / len(p)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    ours, theirs = gradients(model, found), gradients(model, wanted)
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-6), name


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000))
def test_coarser_answers_never_say_more_than_all_of_them(k, seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 9, 40, generator=generator)
    top = p.log_softmax(-1).topk(k)
    kept = top_k.TopKDistillation(top.indices.int()[None], top.values[None], {}, None, 40)
    found = {}

    def catch(model, tokens, of_logits):
        found["loss"], found["gradient"] = of_logits(q.clone(), slice(0, 9))
        return found["loss"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "mean", catch)
        kept(None, {"input_ids": torch.zeros(1, 10, dtype=torch.long), "window": torch.tensor([0])})
    full = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum()
    assert -1e-4 <= found["loss"].item() <= full.item() + 1e-4
    assert found["gradient"].sum(-1).abs().max() < 1e-4  # logits may move together without changing anything


def test_kept_answers_are_computed_once_and_refused_when_changed(tmp_path, monkeypatch):
    teacher, _ = pair(torch.float32)
    tokens = tiny.tokens(5, 20)
    monkeypatch.setattr(top_k, "PART", 2)
    first = top_k.cache_teacher(teacher, tokens, k=4, folder=tmp_path)
    parts = sorted(tmp_path.rglob("part-*.safetensors"))
    assert len(parts) == 3
    parts[1].unlink()
    written = parts[0].stat().st_mtime_ns
    places = torch.tensor([4, 0, 3, 3])
    before = [stored[places[:2]] for stored in (first.ids, first.logp)]
    again = top_k.cache_teacher(teacher, tokens, k=4, folder=tmp_path)
    with torch.no_grad():
        wanted = teacher(tokens).logits[:, :-1].log_softmax(-1).topk(4)
    assert torch.equal(again.ids[places].long(), wanted.indices[places])
    assert torch.allclose(again.logp[places].float(), wanted.values[places], atol=2e-3)
    assert all(torch.equal(one, other[places][:2]) for one, other in zip(before, (again.ids, again.logp)))
    assert parts[0].stat().st_mtime_ns == written
    content = bytearray(parts[2].read_bytes())
    content[-1] ^= 1
    parts[2].write_bytes(content)
    with pytest.raises(ValueError, match="has changed since it was written"):
        top_k.cache_teacher(teacher, tokens, k=4, folder=tmp_path)
    parts[2].write_bytes(content[:20])
    with pytest.raises(ValueError, match="holds no answers"):
        top_k.cache_teacher(teacher, tokens, k=4, folder=tmp_path)


def test_what_does_not_fit_together_is_refused(tmp_path):
    teacher, model = pair(torch.float32)
    other = tiny.llama(vocab_size=300)
    with pytest.raises(ValueError, match="predicts 300 tokens and the model 256"):
        distill.Distillation(other).check(model)
    teacher.tokenizer = tiny.tokenizer()
    teacher.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"the teacher's tokenizer .* is not the model's"):
        distill.Distillation(teacher).check(model)
    with pytest.raises(ValueError, match="of another"):
        top_k.cache_teacher(teacher, tiny.tokens(2, 8), k=4, folder=tmp_path).check(model)
    with pytest.raises(ValueError, match="k=256 of 256"):
        top_k.cache_teacher(teacher, tiny.tokens(2, 8), k=256, folder=tmp_path)
    with pytest.raises(ValueError, match=r"temperature=0.*above 0"):
        distill.Distillation(teacher, temperature=0)
