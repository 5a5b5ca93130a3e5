"""Bits per byte: against the whole document in one pass, and against lm-evaluation-harness's rolling windows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics import bits_per_byte
from lib.sources.texts import Text
from tests import tiny

DOCUMENTS = ["The quick brown fox jumps over the lazy dog. " * 3, "Grüße, 世界! " * 4]


@pytest.fixture(scope="module")
def model():
    return tiny.llama()


def nats(model, ids):
    """-log p of every token after the first, float64, in one pass."""
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return -found[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def test_one_window_equals_one_pass(model):
    expected = sum(nats(model, [0, *model.tokenizer(each)["input_ids"]]).sum().item() for each in DOCUMENTS)
    found = bits_per_byte.measure(model, Text("own", "test", DOCUMENTS), length=400)
    assert found.value == pytest.approx(
        expected / math.log(2) / sum(len(each.encode()) for each in DOCUMENTS), rel=1e-5
    )
    assert found.n == 2 and found.higher_is_better is False and found.unit == "bits/byte"


@pytest.mark.parametrize("length, stride", [(16, 16), (16, 5), (7, 1), (200, 200)])
def test_rolling_windows_equal_the_harness(model, length, stride):
    utils = pytest.importorskip("lm_eval.utils")
    ids = model.tokenizer(DOCUMENTS[0])["input_ids"]
    total = 0.0
    options = {"prefix_token": 0, "max_seq_len": length, "context_len": length - stride + 1}
    for given_ids, predicted in utils.get_rolling_token_windows(ids, **options):
        total += nats(model, [*given_ids, predicted[-1]])[-len(predicted) :].sum().item()
    found = bits_per_byte.measure(model, [DOCUMENTS[0]], length=length, stride=stride)
    assert found.value == pytest.approx(total / math.log(2) / len(DOCUMENTS[0].encode()), rel=1e-5)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_every_token_is_scored_once_with_enough_context(count, length, data):
    stride = data.draw(st.integers(1, length))
    spans = bits_per_byte.windows(count, length, stride)
    assert [token for _, begin, end in spans for token in range(begin, end)] == list(range(1, count + 1))
    for start, begin, end in spans:
        assert 0 <= start < begin and end - 1 - start <= length
        assert begin == 1 or begin - start >= min(length - stride + 1, begin)


def test_context_helps_and_the_baseline_ignores_it(model):
    ids = model.tokenizer(DOCUMENTS[0])["input_ids"]
    counts = torch.tensor(ids).bincount().double()
    share = counts[counts > 0] / len(ids)
    found = bits_per_byte.measure(model, [DOCUMENTS[0]], length=32)
    assert found.baseline == pytest.approx(float(-(share * share.log2()).sum()))  # one token is one byte here
    assert found.stderr > 0


@pytest.mark.parametrize("options", [{"length": 600}, {"length": 8, "stride": 9}, {"length": 8, "stride": 0}])
def test_windows_that_cannot_be_read_are_refused(model, options):
    with pytest.raises(ValueError, match="stride <= length <= 512 is allowed"):
        bits_per_byte.measure(model, DOCUMENTS, **options)


def test_no_text_is_refused(model):
    with pytest.raises(ValueError, match="no text was given"):
        bits_per_byte.measure(model, [""])


@pytest.mark.parametrize("puts", [False, True])
def test_the_harness_itself_counts_a_first_token_that_the_tokenizer_puts_there(puts):
    from tokenizers.processors import TemplateProcessing

    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    model = tiny.llama()
    if puts:
        first = model.tokenizer.bos_token
        model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, 0)]
        )
    there = huggingface.HFLM(pretrained=model, tokenizer=model.tokenizer, batch_size=1, max_length=64)
    (total,) = there.loglikelihood_rolling([Instance("r", {}, (DOCUMENTS[0],), 0)], disable_tqdm=True)
    size = len(DOCUMENTS[0].encode())
    ours = bits_per_byte.measure(model, [DOCUMENTS[0]], length=64)
    ids, theirs = [0, *model.tokenizer(DOCUMENTS[0]).input_ids], 0.0  # with a second first token, where it puts one
    for start, begin, end in bits_per_byte.windows(len(ids) - 1, 64, 64):
        theirs += nats(model, ids[start:end])[begin - end :].sum().item()
    assert -total == pytest.approx(theirs, rel=1e-5)
    if puts:
        assert ours.value != pytest.approx(theirs / math.log(2) / size, rel=1e-3)
    else:
        assert ours.value == pytest.approx(theirs / math.log(2) / size, rel=1e-5)
