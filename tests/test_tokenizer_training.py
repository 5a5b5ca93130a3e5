"""Trained tokenizers write every text and read it back, split as asked; and measures of them against formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lib import tokenization
from lib.sources import builtin_text
from lib.tokenizers import comparison, training
from lib.trainers import byte_pairs
from tests import tiny

ODD = "Éva said:\n  12345 don'ts\t\x00 \U0001f600\u200d\U0001f469 中文 ▁Ġ<0x41> ### हिन्दी  العربية\r\n!!?"
# Python's own words for bytes that are no UTF-8 are half characters, so any bytes come as the text that has them
BYTES = st.binary(max_size=60).map(lambda content: content.decode("latin-1")) | st.text(max_size=60)


@pytest.fixture(scope="module")
def documents():
    return builtin_text.documents("train")[0][:30]


@pytest.fixture(scope="module")
def made(documents):
    options = {"bpe": {}, "unigram": {"digits": "three"}, "wordpiece": {"digits": "single", "spaces": "single"}}
    return {
        kind: training.train(documents, kind=kind, vocabulary=900, characters=60_000, **more)
        for kind, more in options.items()
    }


@pytest.mark.parametrize("kind", training.KINDS)
def test_every_text_comes_back_as_it_was(made, kind):
    tokenizer = made[kind]
    assert len(tokenizer) == 900 and sorted(tokenizer.get_vocab().values()) == list(range(900))

    @settings(max_examples=60)
    @given(BYTES)
    def holds(text):
        assert comparison.round_trips(tokenizer, text)

    holds()
    for text in (ODD, "", "x" * 5000, "".join(map(chr, range(1, 0x250))), byte_pairs.END + "a"):
        assert comparison.round_trips(tokenizer, text), text
    for half in ("\ud83d", "a\udc00"):
        with pytest.raises(ValueError, match="half a character"):
            comparison.round_trips(tokenizer, half)


@pytest.mark.parametrize("kind", training.KINDS)
def test_saved_and_reloaded_it_is_the_same(made, kind, tmp_path, documents):
    made[kind].save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenization.identity(again) == tokenization.identity(made[kind])
    assert again(ODD)["input_ids"] == made[kind](ODD)["input_ids"]
    plainly = sum(len(text.encode()) for text in documents[:5])
    assert sum(map(len, again(documents[:5])["input_ids"])) < plainly / 1.4


def test_the_default_is_the_one_of_the_trainers_and_seeds_count(documents):
    given = {"vocabulary": 400, "characters": 20_000}
    one, other = training.train(documents, **given), byte_pairs.train(documents, **given)
    assert tokenization.identity(one) == tokenization.identity(other)
    for kind in training.KINDS[1:]:
        first, second, third = (
            training.train(documents, kind=kind, vocabulary=600, characters=60_000, seed=seed) for seed in (0, 0, 1)
        )
        assert tokenization.identity(first) == tokenization.identity(second) != tokenization.identity(third)


def pieces(tokenizer, text):
    return [tokenizer.decode([id]) for id in tokenizer(text)["input_ids"]]


def test_options_split_as_they_say(documents):
    text = ["number 123456 and 123456 -- !!!! ((((    x    y    z 123456 !!!! ))))    "] * 50
    text += [*documents[:4], "a        b        c        d " * 200]
    given = {"vocabulary": 400, "normalization": None}
    whole = training.train(text, **given)
    assert " 123456" in pieces(whole, "number 123456")
    assert max(map(len, pieces(training.train(text, digits="three", **given), "1234567"))) == 3
    assert pieces(training.train(text, digits="three", **given), "123456") == ["123", "456"]
    assert pieces(training.train(text, digits="single", **given), "1234") == ["1", "2", "3", "4"]
    assert pieces(training.train(text, punctuation="single", **given), "!!!") == ["!", "!", "!"]
    assert pieces(training.train(text, spaces="single", **given), "    ") == [" "] * 4
    assert len(pieces(whole, " !!!!")) < 3 and len(pieces(whole, " " * 8 + "x")) < 6
    special = training.train(text, special=["<|user|>", byte_pairs.END], **given)
    assert pieces(special, "a<|user|>b") == ["a", "<|user|>", "b"] and len(special) == 400
    assert special.eos_token == byte_pairs.END and "<|user|>" in special.all_special_tokens
    wide = training.train(text, **given | {"normalization": "NFKC"})
    assert wide.decode(wide("ｆｕｌｌ")["input_ids"]) == "full" and whole.decode(whole("ｆ")["input_ids"]) == "ｆ"
    composed = training.train(text, **given | {"normalization": "NFC"})
    assert composed("e\u0301")["input_ids"] == composed("é")["input_ids"] != whole("e\u0301")["input_ids"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "wordpieces"}, "did you mean 'wordpiece'"),
        ({"digits": "two"}, "choose one of single, three, whole"),
        ({"normalization": "NFD"}, "choose one of"),
        ({"vocabulary": 257, "special": ["<a>"]}, "whole numbers from 258 are allowed"),
        ({"kind": "wordpiece", "vocabulary": 400}, "whole numbers from 513 are allowed"),
        ({"vocabulary": 5000}, "give more text"),
        ({"temperature": 0}, "a number above 0"),
    ],
)
def test_what_gives_no_tokenizer_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        training.train({"en": ["a few words"]}, **options)


def test_languages_are_drawn_by_temperature():
    sizes = {"en": 900_000, "de": 90_000, "is": 10_000}
    assert training.language_shares(sizes, 1, 100_000) == {"en": 90_000, "de": 9_000, "is": 1_000}
    even = training.language_shares(sizes, 1e9, 60_000)
    assert even == {"is": 10_000, "en": 25_000, "de": 25_000}  # Icelandic has no more, the others share the rest
    roots = training.language_shares(sizes, 2, 5_000)
    total = sum(map(math.sqrt, sizes.values()))
    assert roots == {name: round(5000 * math.sqrt(size) / total) for name, size in sizes.items()}
    assert training.language_shares(sizes, 3, 10**9) == sizes
    texts = {"a": ["aaaa bbbb "] * 100, "z": ["zzzz yyyy "] * 5}
    drawn = training.sampled(texts, 1e6, 100, 0)
    assert sum(len(text) for text in drawn if "z" in text) == 50


def test_renyi_efficiency_and_fertility_by_hand():
    assert comparison.renyi_efficiency(np.array([5, 5, 5, 5])) == pytest.approx(1)
    assert comparison.renyi_efficiency(np.array([3, 1]), 2) == pytest.approx(-math.log(10 / 16) / math.log(2))
    assert comparison.renyi_efficiency(np.array([3, 1]), 1) == pytest.approx(0.811278, abs=1e-6)
    assert comparison.renyi_efficiency(np.array([3, 1]), 1 + 1e-7) == pytest.approx(0.811278, abs=1e-5)
    assert comparison.renyi_efficiency(np.array([0, 0])) is None
    (row, other) = comparison.table({"bytes": tiny.tokenizer()}, {"two": ["ab cd", "e"], "zh": ["中" * 60]}, width=64)
    assert row["fertility"] == 2 and row["bytes_per_token"] == 1 and row["unused"] == 250
    assert row["embedding"] == 256 * 64 and other["fertility"] is None and other["bytes_per_token"] == 1


def test_entries_that_no_text_reaches_are_named(made):
    import json

    import tokenizers
    from transformers import PreTrainedTokenizerFast

    assert comparison.unreachable(made["bpe"]) == []
    rules = json.loads(made["bpe"].backend_tokenizer.to_str())
    rules["model"]["vocab"]["Ġunreachable"] = 900  # without merges that lead to it
    core = tokenizers.Tokenizer.from_str(json.dumps(rules))
    assert comparison.unreachable(PreTrainedTokenizerFast(tokenizer_object=core)) == [900]


def test_rows_that_only_decayed_are_nearest():
    import torch

    model, draws = tiny.llama(), torch.Generator().manual_seed(1)
    never, glitches = [0xC0, 0xC1, *range(0xF5, 0x100)], [50, 77, 120]
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.copy_(torch.randn(table.shape, generator=draws))
        some = sorted(never + glitches)  # of the tiny tokenizer an id is its byte
        table[some] = torch.randn(64, generator=draws) + 0.01 * torch.randn(len(some), 64, generator=draws)
    found = comparison.undertrained(model, len(some))
    assert {row["id"] for row in found} == set(some) and found[0]["distance"] < 0.01
    assert comparison.undertrained(model, len(some) + 1)[-1]["distance"] > 0.3
    assert {row["id"] for row in comparison.undertrained(model, len(some), unused=[50])} == set(some)
    with pytest.raises(ValueError, match="give some"):
        comparison.undertrained(model, 3, unused=[])
