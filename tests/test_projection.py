"""Logits from hidden states are the model's own, whatever a family does beside its head."""

import copy

import pytest
import torch
import transformers
from torch import nn

from lib.decoding.generate import generate
from lib.decoding.sessions import ModelSession
from lib.metrics import divergence, perplexity
from lib.models import logits
from lib.pruners import drop
from lib.pruners.importance import leave_one_out, passes
from lib.quantizers import sensitivity
from lib.trainers import distill, next_token, top_k
from tests import tiny

IDS = tiny.tokens(3, 20)
SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "bos_token_id": 0}
HEADS = {  # what stands between hidden states and logits
    "factor": ("HyperCLOVAX", {"logits_scaling": 0.4}),
    "divisor": ("Granite", {"logits_scaling": 2.5, "residual_multiplier": 0.4, "embedding_multiplier": 3.0}),
    "scale": ("Cohere", {"logit_scale": 0.3, "tie_word_embeddings": True}),
    "cap": ("Gemma2", {"head_dim": 16, "final_logit_softcapping": 3.0, "tie_word_embeddings": True}),
    "stray scale": ("Llama", {"logit_scale": 0.3}),
    "stray divisor": ("Llama", {"logits_scaling": 5.0}),
    "stray cap": ("Llama", {"final_logit_softcapping": 2.0}),
    "bias": ("Phi", {}),
    "narrow embedding": ("OPT", {"word_embed_proj_dim": 32, "ffn_dim": 96, "do_layer_norm_before": False}),
    "transform": ("ModernBertDecoder", {}),
    "tuples": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}


def build(name):
    family, settings = HEADS[name]
    config = getattr(transformers, f"{family}Config")(**SIZES, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.data.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def changed(model):
    """A copy with noise in the matrices of its blocks."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for name, weight in other.named_parameters():
        if (weight.ndim == 2 and "layers." in name) or ".h." in name:
            weight.data.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return other


@torch.no_grad()
def log_probabilities(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[:, :-1]


def nll(model):
    return -log_probabilities(model).gather(-1, IDS[:, 1:, None])[..., 0]


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_those_of_plain_transformers(name):
    model = build(name)
    plain = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    expected = gradients(plain, model)
    ours = next_token.loss(model, {"input_ids": IDS})
    found = gradients(ours, model)
    assert ours.item() == pytest.approx(plain.item(), rel=2e-6)
    assert found.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert (found[weight] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, weight


@pytest.mark.parametrize("name", HEADS)
def test_every_reader_of_hidden_states_has_the_models_own_logits(name, tmp_path):
    model = build(name)
    student = changed(model)
    p, q = log_probabilities(model), log_probabilities(student)
    expected = (p.exp() * (p - q)).sum(-1)
    assert expected.mean() > 1e-3 and logits.projects(model) and logits.projects(model, IDS)
    batch = {"input_ids": IDS, "window": torch.arange(3)}
    teacher = distill.Distillation(model)
    teacher.check(student)
    kept = top_k.cache_teacher(model, IDS, k=255, folder=tmp_path)
    for loss, close in ((teacher, 1e-5), (kept, 1e-2)):
        assert loss(student, batch).item() == pytest.approx(expected.mean().item(), rel=close)
    remembered = divergence.remember(model, IDS)
    assert torch.allclose(divergence.compare(student, remembered, IDS).divergence, expected, atol=1e-5)
    assert torch.allclose(perplexity.nll(model, IDS), nll(model), atol=1e-5)
    scores, whole = passes.left_out(model, IDS, lambda hidden: leave_one_out._nll(model, hidden, IDS), "blocks")
    assert whole == pytest.approx(float(nll(model).mean()), rel=1e-5)
    assert scores[-1] == pytest.approx(float(nll(drop.without(model, [2])).mean()), rel=1e-5)
    _, last = passes.left_out(
        student, IDS, lambda hidden: sensitivity._divergence(student, remembered, hidden, IDS), ""
    )
    assert last == pytest.approx(float(expected.mean()), rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_what_the_head_reads_is_seen_without_running_it(name):
    model, seen, ran = build(name), [], []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
        handle.remove()
        head.register_forward_hook(lambda *_: ran.append(1))
        logits.projects(model)
        before = len(ran)
        forward = head.forward
        head.forward = lambda *_: pytest.fail("the head ran")
        assert torch.equal(logits.head_inputs(model, IDS), seen[-1])
        assert head.forward is not forward and len(ran) > before
        head.__dict__.pop("forward")


def test_the_trial_is_made_again_when_the_model_changes():
    model = build("stray scale")
    assert logits.projects(model)
    kind = type(model)
    model.__class__ = type("Doubled", (kind,), {"forward": lambda self, **given: doubled(kind.forward(self, **given))})
    p = log_probabilities(model)
    # the model's own code runs, so that what a subclass adds is there too
    assert logits.projects(model) and torch.allclose(perplexity.nll(model, IDS), nll(model), atol=1e-5)
    model.lm_head = nn.Linear(64, 256)
    assert not torch.allclose(log_probabilities(model), p)
    assert torch.allclose(perplexity.nll(model, IDS), nll(model), atol=1e-5)
    before = nll(model)
    model.register_forward_hook(lambda _, args, output: doubled(output))
    assert not torch.allclose(nll(model), before) and torch.allclose(perplexity.nll(model, IDS), nll(model), atol=1e-5)
    compiled = torch.compile(build("bias"), backend="eager")
    assert torch.allclose(perplexity.nll(compiled, IDS), nll(compiled), atol=1e-5)
    assert len(generate(ModelSession(compiled), IDS[0], new_tokens=2).token_ids) == 2


def doubled(output):
    output.logits = output.logits * 2
    return output


def test_a_model_whose_logits_need_more_than_its_hidden_states_is_run_whole_everywhere():
    model = build("stray scale")
    forward = type(model).forward

    class Positions(type(model)):  # logits that depend on the tokens themselves
        def forward(self, input_ids=None, **given):
            output = forward(self, input_ids=input_ids, **given)
            output.logits = output.logits * (1 + (input_ids[..., None] % 3))
            return output

    model.__class__ = Positions
    assert not logits.projects(model, IDS)
    assert not logits.projects(model)
    expected = nll(model)
    assert torch.allclose(perplexity.nll(model, IDS), expected, atol=1e-5)
    found = model(input_ids=IDS, use_cache=False).logits[:, :-1].flatten(0, 1)
    plain = gradients(nn.functional.cross_entropy(found, IDS[:, 1:].flatten()), model)
    ours = gradients(next_token.loss(model, {"input_ids": IDS}), model)
    assert all((ours[name] - plain[name]).norm() <= 1e-4 * plain[name].norm() for name in plain)
    with pytest.raises(ValueError, match="run the model as a whole"):
        logits.Projection.of(model)


def test_a_frozen_projection_keeps_the_logits_of_a_model_that_is_compressed():
    for name in ("factor", "transform", "bias"):
        model = build(name)
        with torch.no_grad():
            states = logits.hidden_states(model, IDS)
            expected = model(input_ids=IDS, use_cache=False).logits
            frozen = logits.Projection.of(model).frozen()
            for weight in model.parameters():
                weight.mul_(0.5)
            assert torch.allclose(frozen(states), expected, atol=1e-5)
        assert not any(weight.requires_grad for weight in frozen.parameters())
