"""Recovered fractions against the formula by hand, and the text that healing may read."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics import divergence, recovery
from lib.metrics.divergence import Comparison
from lib.pruners import depth
from lib.sources import contamination, texts
from lib.sources.texts import Text
from tests import tiny


def surprises(*means, windows=24, seed=0):
    """Negative log-likelihoods [windows, 7] around each mean; the hardness of a window is common to all of them."""
    generator = torch.Generator().manual_seed(seed)
    hard = 0.5 * torch.randn(windows, 1, generator=generator)
    return [mean + hard + 0.02 * torch.randn(windows, 7, generator=generator) for mean in means]


def comparison(divergences):
    zeros = torch.zeros_like(divergences)
    return Comparison(zeros, divergences, zeros.bool(), 1.0, 0.1)


def test_the_fraction_of_the_perplexity_gap():
    parts = surprises(3.0, 4.0, 3.2)
    found = recovery.perplexity(*parts)
    first, cut, now = (math.exp(part.double().mean()) for part in parts)
    assert found.value == pytest.approx((cut - now) / (cut - first), rel=1e-9)
    assert found.n == 24 and found.higher_is_better and found.baseline == 0
    # windows differ by half a nat; paired, that falls out
    assert 0 < found.stderr < 0.01
    apart = recovery.perplexity(parts[0], parts[1], parts[2][torch.randperm(24)])
    assert apart.stderr > 5 * found.stderr


def test_the_standard_error_is_that_of_repeated_samples():
    found = [recovery.perplexity(*surprises(3.0, 3.8, 3.3, windows=40, seed=seed)) for seed in range(60)]
    spread = np.std([score.value for score in found], ddof=1)
    assert np.mean([score.stderr for score in found]) == pytest.approx(spread, rel=0.3)


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 5), st.floats(0.05, 3), st.floats(-0.5, 4))
def test_zero_and_one_are_the_pruned_model_and_the_original(base, gap, healed):
    first, cut, now = surprises(base, base + gap, base + healed, windows=5)
    assert recovery.perplexity(first, cut, cut).value == pytest.approx(0, abs=1e-9)
    assert recovery.perplexity(first, cut, first).value == pytest.approx(1)
    value = recovery.perplexity(first, cut, now).value
    assert (value > 1) == (now.double().mean() < first.double().mean())


def test_the_fraction_of_the_divergence():
    cut, now = (torch.rand(12, 5, generator=torch.Generator().manual_seed(seed)) + 0.2 for seed in (0, 1))
    found = recovery.divergence(comparison(cut), comparison(now / 4))
    assert found.value == pytest.approx(1 - (now / 4).double().mean().item() / cut.double().mean().item())
    assert recovery.divergence(comparison(cut), comparison(0 * cut)).value == 1


def test_it_measures_models():
    original, pruned = tiny.llama(), depth.drop_blocks_(tiny.llama(), [1])
    tokens = tiny.tokens(4, 32)
    after = divergence.compare(pruned, original, tokens)
    assert recovery.divergence(after, divergence.compare(tiny.llama(), original, tokens)).value == pytest.approx(1)


def test_gaps_that_are_none_are_refused():
    first, cut = surprises(3.0, 2.9)
    with pytest.raises(ValueError, match=r"a fraction needs a gap; remove more blocks"):
        recovery.perplexity(first, cut, cut)
    with pytest.raises(ValueError, match=r"original \[24, 7\], pruned \[23, 7\], healed \[24, 7\]; pairs need"):
        recovery.perplexity(first, cut[1:], cut)
    none = comparison(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"answers as the original does; a fraction needs a gap"):
        recovery.divergence(none, none)


SENTENCE = "The quick brown fox jumps over the lazy dog while thirteen other words follow it."


def text(*documents, split="train"):
    return Text("mine", split, list(documents))


def test_paragraphs_that_the_test_text_holds_are_left_out(capsys):
    held = text("Before. " + SENTENCE.upper().replace(" ", "  ") + " After.", split="test")
    mine = text(f"One.\n\n{SENTENCE}\n\nTwo.", "Three.", SENTENCE)
    found = contamination.without(mine, held)
    assert found.documents == ["One.\n\nTwo.", "Three."]
    assert found.sha256 != mine.sha256 and "2 of 5 paragraphs share 13 words with mine/test" in found.origin
    assert "2 of 5 paragraphs" in capsys.readouterr().out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_what_is_left_shares_no_run_of_words(mine, theirs, words):
    one, other = (" ".join("abcd"[index] for index in each) for each in (mine, theirs))
    runs = {one[start : start + 2 * words - 1] for start in range(0, len(one) - 2 * words + 2, 2)}
    shared = any(len(run) == 2 * words - 1 and run in other for run in runs)
    found = contamination.without(text(one, "kept as it is"), text(other, split="test"), words=words)
    assert found.documents == [*([] if shared or not one else [one]), "kept as it is"]


def test_nothing_left_is_refused():
    with pytest.raises(ValueError, match=r"every paragraph of mine/train shares 13 words .*another text or split"):
        contamination.without(text(SENTENCE), text(SENTENCE, split="test"))
    with pytest.raises(ValueError, match=r"words=0; 1 or more"):
        contamination.without(text("a"), text("b"), words=0)


def test_packaged_healing_text_is_apart_from_the_test_text():
    test, train = texts.load("packaged", "test"), texts.load("packaged", "train")
    found = contamination.without(train, test)
    assert 0.99 < len(found.text) / len(train.text) < 1
    known = {passage for document in test.documents for passage in contamination.passages(document, 13)}
    # a run of words across the place where a paragraph was taken out is none of the test text's either
    paragraphs = [part for document in found.documents for part in document.split("\n\n")]
    assert all(known.isdisjoint(contamination.passages(part, 13)) for part in paragraphs)
