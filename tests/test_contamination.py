"""Overlap of texts: against published examples, formulas by hand, and independent implementations."""

import importlib
import math
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics import text_overlap
from lib.tasks import long_context
from lib.tasks.task import Sample

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "dog"]), min_size=1, max_size=12)


def longest_common(one, other):
    """Length of the longest common subsequence, by the textbook recursion."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one, 1):
        for j, right in enumerate(other, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if left == right else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def test_sari_of_the_published_example():
    source, text = "About 95 species are currently accepted .", "About 95 you now get in ."
    references = [
        "About 95 species are currently known .",
        "About 95 species are now accepted .",
        "95 species are now accepted .",
    ]
    assert text_overlap.sari(source, text, references) == pytest.approx(26.953601953601954, abs=1e-12)


def test_sari_by_hand():
    # one reference: "a b" to "a c"; the output "a c" keeps, adds and deletes what the reference does
    assert text_overlap.sari("a b", "a c", ["a c"]) == pytest.approx(100)
    # an output that repeats its source keeps a (1/2 of what it keeps, all of what it should) and changes nothing:
    # unigrams F(keep) = 2/3, F(add) = 0, P(delete) = 1; bigrams 0 of 1 kept, nothing to keep (1), add 0, delete 1
    unigrams, bigrams, none = (2 / 3 + 0 + 1) / 3, (0 + 0 + 1) / 3, 1.0
    assert text_overlap.sari("a b", "a b", ["a c"]) == pytest.approx(100 * (unigrams + bigrams + 2 * none) / 4)


@settings(deadline=None, max_examples=20)
@given(WORDS, WORDS)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(text, reference):
    common = longest_common(text, reference)
    expected = 2 * common / (len(text) + len(reference))
    found = text_overlap.rouge(" ".join(text), [" ".join(reference)])
    assert found["rougeL"] == pytest.approx(expected)


@settings(deadline=None, max_examples=20)
@given(WORDS, WORDS)
def test_bleu_1_is_clipped_precision_times_brevity(text, reference):
    clipped = sum(min(text.count(word), reference.count(word)) for word in set(text))
    brevity = 1.0 if len(text) > len(reference) else math.exp(1 - len(reference) / len(text))
    assert text_overlap.bleu(" ".join(text), " ".join(reference), 1) == pytest.approx(brevity * clipped / len(text))


@settings(deadline=None, max_examples=20)
@given(WORDS)
def test_a_text_agrees_with_itself(words):
    text = " ".join(words)
    assert text_overlap.rouge(text, ["nothing alike", text])["rougeL"] == pytest.approx(1)
    assert text_overlap.edit_similarity(text, text) == 100
    assert text_overlap.bleu(text, text, 1) == pytest.approx(1)
    assert text_overlap.sari(text, text, [text]) == pytest.approx(100)


@settings(deadline=None, max_examples=40)
@given(WORDS, WORDS)
def test_bleu_4_is_brevity_times_the_geometric_mean_of_four_precisions(text, reference):
    precisions = []
    for n in range(1, 5):
        grams, others = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in (text, reference))
        hits = sum(min(grams.count(gram), others.count(gram)) for gram in set(grams))
        precisions.append(hits / len(grams) if grams else 0.0)
    brevity = 1.0 if len(text) > len(reference) else math.exp(1 - len(reference) / len(text))
    expected = brevity * math.prod(precisions) ** 0.25  # without smoothing: 0 where an order has no match
    found = text_overlap.bleu(" ".join(text), " ".join(reference), 4)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.permutations("abcdefgh"), st.permutations("abcdefgh"), st.integers(1, 8), st.integers(1, 8))
def test_longbenchs_rouge_is_the_f_measure_of_our_own_longest_common_subsequence(one, other, first, second):
    # one sentence without repeated words on each side: there its union of subsequences is a single one
    text, reference = one[:first], other[:second]
    expected = 2 * longest_common(text, reference) / (len(text) + len(reference))
    assert text_overlap.rouge_l(" ".join(text), " ".join(reference)) == pytest.approx(expected, abs=1e-6)


def test_news_score_what_the_harness_scores(monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; it is a test dependency")
    for name in ("jieba", "fuzzywuzzy"):  # its file imports them for other scores
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(fuzz=None))
    metrics = importlib.import_module("lm_eval.tasks.longbench.metrics")
    references = ["A fire broke out. Nobody was hurt, police said.", "Police: nobody hurt in fire."]
    for text in (" A fire. Police said nobody was hurt.\n", "Nothing of that kind", "", ".", references[1]):
        sample = Sample("0", "0", (), references)
        expected = metrics.get_rouge_score({"answers": references}, [text])["rouge_score"]
        assert long_context.score_news(sample, [text])["score"] == pytest.approx(expected, abs=1e-12), text


def matching(one, other):
    """Characters in matching blocks: the longest common substring (the earliest of equals), then both sides of it."""
    best = (0, 0, 0)
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if one[i - 1] == other[j - 1] else 0
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            size = lengths[i][j]
            best = max(best, (size, size - i, size - j))  # minus where it begins
    size, first, second = best[0], -best[1], -best[2]
    if not size:
        return 0
    before, after = (one[:first], other[:second]), (one[first + size :], other[second + size :])
    return size + matching(*before) + matching(*after)


@settings(deadline=None, max_examples=60)
@given(st.text("ab( =", min_size=1, max_size=18), st.text("ab( =", min_size=1, max_size=18))
def test_edit_similarity_is_ratcliff_and_obershelps_by_a_plain_dynamic_program(text, reference):
    expected = round(100 * 2 * matching(text, reference) / (len(text) + len(reference)))
    assert text_overlap.edit_similarity(text, reference) == expected


def test_bleu_of_a_corpus_by_hand():
    texts, references = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog"]
    # matches / n-grams over both texts: 5+2 of 8, 3+1 of 6, 2 of 4, 1 of 3; equal lengths, so no brevity penalty
    expected = 100 * (7 / 8 * 4 / 6 * 2 / 4 * 1 / 3) ** 0.25
    assert text_overlap.corpus_bleu(texts, references) == pytest.approx(expected)


def test_edit_similarity_by_hand():
    # "abcd" and "bcde": the matching block "bcd", so 2 * 3 / 8
    assert text_overlap.edit_similarity("abcd", "bcde") == 75
    assert text_overlap.edit_similarity("", "x") == text_overlap.edit_similarity("x", "") == 0


def test_empty_texts_score_nothing():
    assert text_overlap.rouge_l("", "a b") == text_overlap.rouge_l("a b", " . ") == 0
    assert text_overlap.bleu("", "a b", 4) == 0
    assert text_overlap.rouge("", ["a b"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    assert text_overlap.sentence_scores("", "a b")["bleu"] == 0


def test_rouge_l_of_sentences_by_hand():
    # one sentence each: 3 of 4 words in common order on both sides
    assert text_overlap.rouge_l("the cat sat down", "the cat lay down") == pytest.approx(0.75, abs=1e-6)
