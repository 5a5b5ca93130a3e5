"""Perplexity against a direct loop over transformers' own loss, and the properties that comparisons rely on."""

import math

import pytest
import torch
import transformers

from lib.metrics import perplexity
from lib.models import logits
from lib.sources import texts
from tests import tiny


def _direct(model, tokens):
    """exp of the mean loss that transformers computes for one window at a time."""
    with torch.no_grad():
        losses = [model(input_ids=window[None], labels=window[None]).loss.double() for window in tokens]
    return float(torch.stack(losses).mean().exp())


@pytest.mark.parametrize("build", [tiny.llama, tiny.qwen2, tiny.qwen3, tiny.mistral, tiny.phi, tiny.gemma2])
def test_equals_a_direct_transformers_loop(build):
    model, tokens = build(), tiny.tokens(5, 24)
    assert perplexity.measure(model, tokens).value == pytest.approx(_direct(model, tokens), rel=1e-5)


def test_bfloat16_model_is_scored_in_float32():
    model, tokens = tiny.llama().bfloat16(), tiny.tokens(3, 24)
    expected = [model(window[None]).logits[0, :-1].float().double().log_softmax(-1) for window in tokens]
    expected = -torch.stack([part.gather(1, window[1:, None])[:, 0] for part, window in zip(expected, tokens)])
    found = perplexity.nll(model, tokens)
    assert found.dtype == torch.float32 and found.shape == (3, 23)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_chunks_and_batches_do_not_change_the_result(monkeypatch):
    model, tokens = tiny.llama(), tiny.tokens(5, 24)
    whole = perplexity.nll(model, tokens)
    assert torch.allclose(perplexity.nll(model, tokens, batch=3), whole, atol=1e-5)
    monkeypatch.setattr(logits, "CHUNK_BYTES", 4 * 256 * 7)  # seven rows at a time
    sizes = [chunk.stop - chunk.start for chunk in logits.chunks(23, 256)]
    assert sizes == [7, 7, 7, 2]
    assert torch.allclose(perplexity.nll(model, tokens), whole, atol=1e-5)


def test_scaled_logits_are_respected():
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    for family, scale in (("Cohere", {"logit_scale": 0.25}), ("Granite", {"logits_scaling": 8.0})):
        config = getattr(transformers, f"{family}Config")(**sizes, **scale)
        model, tokens = getattr(transformers, f"{family}ForCausalLM")(config).eval(), tiny.tokens(2, 24)
        assert logits.projects(model, tokens)
        assert perplexity.measure(model, tokens).value == pytest.approx(_direct(model, tokens), rel=1e-5)


def test_a_model_that_does_more_than_its_head_runs_as_a_whole():
    model, tokens = tiny.llama(), tiny.tokens(2, 24)
    forward = model.forward

    def twice(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = twice
    assert not logits.projects(model, tokens)
    expected = -(model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0])
    assert torch.allclose(perplexity.nll(model, tokens), expected, atol=1e-5)


def test_score_carries_error_direction_and_the_unigram_baseline():
    model, tokens = tiny.llama(), tiny.tokens(6, 24)
    score = perplexity.measure(model, tokens)
    assert (score.n, score.unit, score.higher_is_better) == (6, "perplexity", False)
    window_means = perplexity.nll(model, tokens).mean(1)
    assert score.stderr == pytest.approx(float(window_means.std() / math.sqrt(6)) * score.value, rel=0.25)
    assert perplexity.predicted(tokens) == 6 * 23


def test_unigram_baseline_by_hand():
    # after the first token of each window: 1 1 2 and 1 1 2, so shares 2/3 and 1/3
    tokens = torch.tensor([[9, 1, 1, 2], [8, 1, 1, 2]])
    assert perplexity.unigram(tokens) == pytest.approx((3 / 2) ** (2 / 3) * 3 ** (1 / 3))


def test_a_single_window_has_no_error():
    assert perplexity.measure(tiny.llama(), tiny.tokens(1, 24)).stderr is None


def test_windows_limits_how_many_are_used():
    model, tokens = tiny.llama(), tiny.tokens(6, 24)
    assert perplexity.measure(model, tokens, windows=2) == perplexity.measure(model, tokens[:2])


def test_modes_of_all_modules_are_left_as_found():
    model = tiny.llama()
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    seen = []
    model.model.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    perplexity.measure(model, tiny.tokens(2, 16))
    assert [module.training for module in model.modules()] == before and True in before and False in before
    assert seen and not any(seen)


def test_working_memory_of_a_large_vocabulary_stays_small():
    sizes = [chunk.stop - chunk.start for chunk in logits.chunks(511, 262_144)]
    assert sum(sizes) == 511
    assert 12 * 4 * max(sizes) * 262_144 < 200e6


def test_nan_weights_are_refused():
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="logits of LlamaForCausalLM from window 0 on are not finite"):
        perplexity.measure(model, tiny.tokens(2, 16))


def test_text_too_short_is_refused():
    with pytest.raises(ValueError, match="two tokens or more"):
        perplexity.measure(tiny.llama(), tiny.tokens(3, 1))

    with pytest.raises(ValueError, match="has 40 tokens, enough for 0 windows of 64"):
        perplexity.measure(tiny.llama(), texts.Text("short", "test", ["x" * 40]), length=64)
    with pytest.raises(ValueError, match="windows=0; choose"):
        perplexity.measure(tiny.llama(), tiny.tokens(3, 8), windows=0)


def test_a_text_is_cut_into_windows_that_do_not_overlap():
    model, text = tiny.llama(), texts.Text("some", "test", ["abcdefgh" * 12, "ij" * 9])
    tokens = torch.tensor(list(text.text.encode()))[: 7 * 16].view(7, 16)
    assert perplexity.measure(model, text, length=16) == perplexity.measure(model, tokens)
    assert perplexity.measure(model, text.windows(3, 16)) == perplexity.measure(model, tokens[:3])


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="the model knows 0 to 255"):
        perplexity.measure(tiny.llama(), torch.full((1, 8), 256))


@pytest.mark.parametrize("batch", [0, -1, "all", 1.5])
def test_bad_batches_are_refused(batch):
    with pytest.raises(ValueError, match='choose "auto" or a whole number'):
        perplexity.measure(tiny.llama(), tiny.tokens(2, 8), batch=batch)
