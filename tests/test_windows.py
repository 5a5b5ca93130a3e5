"""Windows of tokens: where they are cut, which are drawn, and what is refused."""

import hashlib
import random

import pytest
import torch

from lib import files
from lib.sources import texts
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.llama()


def text(content="abcdefghij" * 10):
    return texts.Text("given", "test", [content])


def test_windows_are_consecutive_from_the_start(model):
    source = text()
    ids = torch.tensor(list(source.text.encode()))
    found = texts.tokens(source.windows(3, 8), model)
    assert torch.equal(found, ids[:24].view(3, 8)) and found.dtype == torch.int64


def test_text_yields_all_its_windows(model):
    assert texts.tokens(text(), model, length=8).shape == (12, 8)
    assert texts.tokens(text(), model, length=8, count=5).shape == (5, 8)
    assert texts.tokens(text("ab" * 600), model).shape == (2, 512)


def test_windows_and_tensors_keep_their_length(model):
    assert texts.tokens(text().windows(3, 8), model, count=2, length=512).shape == (2, 8)
    assert texts.tokens(tiny.tokens(4, 16), model, count=3, length=512).shape == (3, 16)
    assert texts.tokens(tiny.tokens(4, 16).int(), model).dtype == torch.int64


def test_seeded_draw_is_without_replacement_and_leaves_global_seeds(model):
    source = text("".join(chr(97 + number % 26) + str(number) for number in range(300)))
    states = torch.get_rng_state(), random.getstate()
    found = texts.tokens(source.windows(20, 10, seed=3), model)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    every = texts.tokens(source, model, length=10).tolist()
    drawn = found.tolist()
    assert all(window in every for window in drawn) and len({tuple(window) for window in drawn}) == 20
    assert drawn != every[:20] and drawn != sorted(drawn, key=every.index)
    assert torch.equal(found, texts.tokens(source.windows(20, 10, seed=3), model))
    assert not torch.equal(found, texts.tokens(source.windows(20, 10, seed=4), model))


def test_text_is_tokenised_once_for_equal_tokenizers(model, monkeypatch):
    source = text("a text that no other test has")
    first = texts.tokens(source, model, length=4)
    other = tiny.qwen3()
    own = type(other.tokenizer).__call__

    def asked(tokenizer, words, **options):
        assert words != source.text, "tokenised again"
        return own(tokenizer, words, **options)

    monkeypatch.setattr(type(other.tokenizer), "__call__", asked)
    assert torch.equal(texts.tokens(source, other, length=4), first)


def added(tokenizer):
    tokenizer.add_tokens(["alpha"])


def split(tokenizer):
    tokenizer.split_special_tokens = True


def normalized(tokenizer):
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def parted(tokenizer):
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def another_vocabulary(tokenizer):
    from tokenizers import models

    vocabulary = tokenizer.get_vocab()
    tokenizer.backend_tokenizer.model = models.BPE(vocab={**vocabulary, "al": 256}, merges=[("a", "l")])


@pytest.mark.parametrize("change", [added, split, normalized, parted, another_vocabulary])
def test_tokens_are_those_of_the_tokenizer_as_it_is_now(change):
    """After each change of a tokenizer that has cut this text before, what it says itself."""
    model, source = tiny.llama(vocab_size=300), text("alpha <pad> BETA, alpha and so on")
    model.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    before, rules = texts.tokens(source, model, length=8), texts.tokenizer_hash(model)
    change(model.tokenizer)
    own = model.tokenizer(source.text, add_special_tokens=False)["input_ids"]
    now = texts.tokens(source, model, length=8)
    assert now.flatten().tolist() == own[: now.numel()] != before.flatten().tolist()[: now.numel()]
    assert texts.tokenizer_hash(model) != rules


def test_padding_and_truncation_of_a_call_are_no_rules(model):
    rules = texts.tokenizer_hash(model)
    model.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert texts.tokenizer_hash(model) == rules


def test_documents_that_change_are_tokenised_anew(model):
    source = text("abcdefgh")
    texts.tokens(source, model, length=8)
    source.documents[0] = "ABCDEFGH"
    assert texts.tokens(source, model, length=8).tolist() == [list(b"ABCDEFGH")]


def test_a_tokenizer_with_code_of_its_own_is_asked_each_time():
    """Nothing tells what such code does, so nothing that it said is kept."""
    model = tiny.llama()

    class Shifting(type(model.tokenizer)):
        shift = 0

        def __call__(self, *args, **options):
            found = super().__call__(*args, **options)
            if isinstance(args[0], str):
                found["input_ids"] = [(each + self.shift) % 256 for each in found["input_ids"]]
            return found

    model.tokenizer.__class__ = Shifting
    first = texts.tokens(text(), model, length=8)
    model.tokenizer.shift = 1
    assert torch.equal(texts.tokens(text(), model, length=8), first + 1)


def test_tokenizer_of_the_models_folder(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path))
    assert texts.tokens(text(), model, length=8).shape == (12, 8)


def test_model_without_tokenizer():
    model = tiny.llama()
    del model.tokenizer
    model.name_or_path = ""
    with pytest.raises(ValueError, match="no tokenizer and names no folder"):
        texts.tokens(text(), model, length=8)
    assert texts.tokens(tiny.tokens(), model).shape == (4, 32)


@pytest.mark.parametrize("wanted", [text().windows(13, 8), text().windows(13, 8, seed=0)])
def test_too_short_for_the_windows(model, wanted):
    with pytest.raises(ValueError, match=r"has 100 tokens, enough for 12 windows of 8; 13 were asked; ask fewer"):
        texts.tokens(wanted, model)


def test_too_short_for_one_window(model):
    with pytest.raises(ValueError, match=r"has 100 tokens, enough for 0 windows of 512; 1 were asked"):
        texts.tokens(text(), model)


def test_longer_than_the_model(model):
    with pytest.raises(ValueError, match=r"length=513 is more than the model's 512 positions"):
        texts.tokens(text("ab" * 600).windows(1, 513), model)


@pytest.mark.parametrize("count, length", [(0, 8), (-1, 8), (1, 1), (1, 0)])
def test_windows_of_nothing(count, length):
    with pytest.raises(ValueError, match="allowed are 1 or more, of 2 tokens or more"):
        text().windows(count, length)


@pytest.mark.parametrize(
    "ids", [torch.zeros(3), torch.zeros(2, 4), torch.zeros(4).long(), torch.zeros(0, 4).long(), torch.ones(2, 2) > 0]
)
def test_tensors_that_are_no_token_ids(model, ids):
    with pytest.raises(ValueError, match="token ids are integers"):
        texts.tokens(ids, model)


@pytest.mark.parametrize("value", [-1, 256])
def test_ids_outside_the_vocabulary(model, value):
    with pytest.raises(ValueError, match=r"the model knows 0 to 255"):
        texts.tokens(torch.full((1, 4), value), model)


def test_neither_text_nor_tokens(model):
    with pytest.raises(TypeError, match="tokens of a str were asked"):
        texts.tokens("words", model)


def test_data_hash_sees_values_and_shape_alone():
    ids = tiny.tokens(4, 8)
    expected = hashlib.sha256(b"[4, 8]" + b"".join(int(i).to_bytes(8, "little") for i in ids.flatten())).hexdigest()
    assert files.data_hash(ids) == expected == files.data_hash(ids.int()) == files.data_hash(ids.t().contiguous().t())
    assert files.data_hash(ids.view(8, 4)) != expected
