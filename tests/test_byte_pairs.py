"""A tokenizer of one's own: every byte, the same from the same text, and refused where it fits nothing."""

import pytest

from lib import architectures, tokenization
from lib.export import plain
from lib.sources import models, texts
from lib.trainers import byte_pairs
from tests.test_architectures import SIZES


@pytest.fixture(scope="module")
def documents():
    return texts.load("packaged", split="train").documents[:40]


def test_it_holds_every_text_and_saves_with_its_model(documents, tmp_path):
    made = byte_pairs.train(documents, vocabulary=600)
    assert len(made) == 600 and made.eos_token == byte_pairs.END and made.decode([made.eos_token_id]) == byte_pairs.END
    for text in (documents[0][:500], "Éva said:\n  12 don'ts\t\x00 \U0001f600 中文"):
        ids = tokenization.ids(made, [text])[0]
        assert made.decode(ids) == text and max(ids) < 600
    plainly = sum(len(text.encode()) for text in documents[:5])
    assert sum(map(len, tokenization.ids(made, documents[:5]))) < plainly / 1.8
    model = architectures.build("plain", SIZES | {"vocab_size": 600}, 0)
    byte_pairs.check(model, made)
    plain.save(model, made, tmp_path / "model")
    _, again = models.load(str(tmp_path / "model"))
    assert tokenization.identity(again) == tokenization.identity(made)


def test_the_same_text_and_seed_give_the_same_tokenizer(documents):
    one, two, other = (byte_pairs.train(documents, vocabulary=400, characters=20_000, seed=seed) for seed in (0, 0, 1))
    assert tokenization.identity(one) == tokenization.identity(two) != tokenization.identity(other)


@pytest.mark.parametrize(
    "text, vocabulary, said",
    [
        (["a short text"], 4096, "vocabulary=4096 from text of 12 characters, which gives"),
        (["text"], 256, "vocabulary=256; the 256 bytes and .* are in every one"),
        ([" "], 300, "no text was given"),
    ],
)
def test_what_gives_no_tokenizer_is_refused(text, vocabulary, said):
    with pytest.raises(ValueError, match=said):
        byte_pairs.train(text, vocabulary=vocabulary)


def test_a_model_whose_table_does_not_fit_is_refused(documents):
    made = byte_pairs.train(documents, vocabulary=400)
    for size in (256, 399, 1024):
        with pytest.raises(ValueError, match=f"vocab_size={size} of the model for a tokenizer of 400 tokens; 400 to"):
            byte_pairs.check(architectures.build("plain", SIZES | {"vocab_size": size}, 0), made)
