"""Texts that stay in their files: documents, tokens and windows are those of the same text in memory."""

import itertools
import json
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from lib import files
from lib.sources import chunks, file_formats, readers, streams, texts, token_file, token_windows
from lib.trainers import loop, next_token, training_data
from tests import tiny

WORDS = [f"Wörter {number} of\r\na line,  and\tmore 😀\n" for number in range(40)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of texts and a home of its own; chunks are small, so that even short texts have many."""
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "a home with é"))
    monkeypatch.setattr(file_formats, "BLOCK", 37)
    own = chunks.ids
    monkeypatch.setattr(chunks, "ids", lambda tokenizer, pieces: own(tokenizer, pieces, chunk=200, overlap=60))
    return tmp_path


def write(path, documents):
    if path.suffix == ".txt":
        path.write_bytes("".join(documents).encode())
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": each}) + "\n\n" for each in documents))
    else:
        pd.DataFrame({"n": range(len(documents)), "text": documents}).to_parquet(path)
    return path


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("name", ["train-a.txt", "own.txt", "own.jsonl", "test.parquet", "own.parquet", "several"])
def test_streamed_is_what_it_is_in_memory(folder, name, split):
    if name == "several":
        (folder / name).mkdir()
        for number, some in enumerate((WORDS[:2], ["\n \n"], WORDS[2:9])):
            write(folder / name / f"{split}-{number}.{'txt' if number else 'jsonl'}", some)
    else:
        write(folder / name, ["\n \n" * 30, *WORDS[:25], " ", *WORDS[25:]])
    if readers._split_of(folder / name) not in (None, split):
        pytest.skip("the file is of another split by its name")
    held, streamed = (texts.load(name, split, in_memory=size) for size in (1 << 20, 0))
    assert not held.streamed and streamed.streamed
    assert list(streamed.documents) == held.documents and len(streamed.documents) == len(held.documents)
    assert "".join(streamed.pieces()) == held.text == streamed.text
    assert streamed.sha256 == held.sha256 and streamed.origin == held.origin
    assert streamed.characters == held.characters
    model = tiny.llama()
    for given in (lambda text: text, lambda text: text.windows(3, 8), lambda text: text.windows(5, 8, seed=2)):
        ids, rows = texts.tokens(given(held), model, length=8), texts.rows(given(streamed), model, length=8)
        assert torch.equal(texts.tokens(given(streamed), model, length=8), ids)
        assert isinstance(rows, token_windows.Rows) and files.data_hash(rows) == files.data_hash(ids)
        assert torch.equal(torch.stack([*rows[1:]]), ids[1:]) and tuple(ids.shape) == rows.shape


def test_documents_in_memory_follow_those_in_files(folder):
    both = streams.Documents(streams.Part(write(folder / "a.jsonl", WORDS[:2])))
    both += ["more", " "]
    assert list(both) == [*WORDS[:2], "more"] and "".join(both.pieces()) == "\n\n".join(both)


def test_bytes_that_are_not_utf8_are_named_where_they_are(folder):
    (folder / "test.txt").write_bytes("ä\n".encode() * 40 + b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"test\.txt is not UTF-8: byte 0xe9 at offset 123, line 41;"):
        texts.load("test.txt", in_memory=0)


def byte_pairs(core, words):
    from tokenizers import models, pre_tokenizers, trainers

    core.model, core.pre_tokenizer = models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(vocab_size=900, initial_alphabet=letters, show_progress=False)


def sentences_as_one_word(core, words):
    from tokenizers import models, normalizers, trainers

    core.model = models.BPE(byte_fallback=True, unk_token="<unk>")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>"], show_progress=False)


def unigrams(core, words):
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    core.model, core.normalizer, core.pre_tokenizer = models.Unigram(), normalizers.NFKC(), pre_tokenizers.Metaspace()
    return trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)


def word_pieces(core, words):
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    core.model, core.normalizer = models.WordPiece(unk_token="[UNK]"), normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)


@pytest.mark.parametrize("kind", [byte_pairs, sentences_as_one_word, unigrams, word_pieces])
def test_tokens_of_pieces_are_those_of_the_whole(kind):
    """Also in runs of digits and of spaces that are longer than a chunk, where two chunks agree nowhere."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words, core = texts.load("packaged", "test").text, Tokenizer(models.BPE())
    trainer = kind(core, words)
    core.train_from_iterator(words[:30_000].split("\n"), trainer)
    tokenizer, odd = PreTrainedTokenizerFast(tokenizer_object=core), np.random.default_rng(0)
    noise = odd.choice([" ", "\n", "é", "e\u0301", "😀", "漢", "12345 ", " a", "  \n\n", "<unk>", "====="], 3000)
    whole = words[:12_000] + "".join(noise) + "7" * 1500 + words[:3000] + " " * 1500 + words[:50]
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    for chunk, overlap, piece in ((600, 200, 77), (5000, 1000, 6000)):
        pieces = (whole[place : place + piece] for place in range(0, len(whole), piece))
        found = list(chunks.ids(tokenizer, pieces, chunk=chunk, overlap=overlap))
        assert len(found) > 3 and [end for _, end in found] == sorted({end for _, end in found})
        assert np.concatenate([ids for ids, _ in found]).tolist() == expected


def test_text_that_can_be_cut_nowhere_is_refused():
    with pytest.raises(ValueError, match=r"characters from 0 on are tokenized alike nowhere .* larger in_memory"):
        list(chunks.ids(tiny.tokenizer(), itertools.repeat("a" * 50, 100), chunk=20, overlap=8))


# ---------------------------------------------------------------- the file


@pytest.fixture
def text(folder):
    write(folder / "train.jsonl", WORDS)
    return texts.load("train.jsonl", "train", in_memory=0)


def made(folder):
    return sorted((folder / "a home with é" / "data" / "cache" / "tokens").glob("*/*"))


def test_made_once_by_several_at_once_and_then_reused(folder, text, monkeypatch):
    asked, found, own = [], [], chunks.ids
    monkeypatch.setattr(chunks, "ids", lambda *given: asked.append(1) or own(*given))
    makers = [threading.Thread(target=lambda: found.append(token_file.mapped(text, tiny.tokenizer()))) for _ in "1234"]
    for each in makers:
        each.start()
    for each in makers:
        each.join()
    again = token_file.mapped(texts.load("train.jsonl", "train", in_memory=0), tiny.tokenizer())
    assert len(asked) == 1 and len(found) == 4 and all((each == again).all() for each in found)
    assert bytes(again.astype(np.uint8)) == text.text.encode() and not again.flags.writeable
    assert [path.name for path in made(folder)] == ["about.json", "ids.bin"]
    other = tiny.tokenizer()
    other.add_tokens(["line"])
    assert len(token_file.mapped(text, other)) < len(again) and len(made(folder)) == 4


@pytest.mark.parametrize("harm", ["cut", "missing", "other", "no json"])
def test_a_file_that_is_not_whole_is_made_again(folder, text, harm):
    before = np.array(token_file.mapped(text, tiny.tokenizer()))
    about, ids = made(folder)
    (about.parent / ".ids.bin.12345678.tmp").write_bytes(b"of a process that was killed")
    if harm == "cut":
        ids.write_bytes(ids.read_bytes()[:-4])
    elif harm == "missing":
        ids.unlink()
    else:
        about.write_text(about.read_text().replace(text.sha256, "0" * 64) if harm == "other" else "{")
    assert (token_file.mapped(text, tiny.tokenizer()) == before).all() and made(folder) == [about, ids]
    assert not list(about.parent.glob(".*.tmp"))


def test_a_text_that_changed_since_it_was_loaded_is_refused(folder, text):
    write(folder / "train.jsonl", WORDS[:-1])
    with pytest.raises(ValueError, match=r"the files of train\.jsonl/train have changed since .* load it again"):
        texts.tokens(text.windows(2, 8), tiny.llama())
    assert made(folder) == []


def test_a_full_disk_is_said_before_anything_is_written(folder, text, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: Full)
    with pytest.raises(OSError, match=r"ids\.bin needs 0 MB and its disk has 0 MB free; free some space"):
        texts.tokens(text.windows(2, 8), tiny.llama())
    assert made(folder) == []


class Full:
    """A disk with five bytes left."""

    free = 5


def test_more_windows_than_memory_has_room_for(text, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100}))
    with pytest.raises(ValueError, match=r"windows of 8 tokens take .* are free; .* ask fewer, by text\.windows"):
        texts.tokens(text, tiny.llama(), length=8)


def test_ids_in_a_file_that_the_model_does_not_know(text):
    model = tiny.llama(vocab_size=100)
    with pytest.raises(ValueError, match=r"the model knows 0 to 99"):
        texts.tokens(text.windows(2, 8), model)


def test_training_on_a_streamed_text_is_training_on_the_text(folder, text):
    held, losses = texts.load("train.jsonl", "train"), []
    for given in (held, text):
        model = tiny.llama(num_hidden_layers=1)
        source = training_data.of(given.windows(20, 16, seed=1), model)
        done = loop.train_(model, source, next_token.loss, steps=3, learning_rate=1e-3)
        losses.append((source.identity, source.described(), done.losses, model.lm_head.weight.sum().item()))
    assert losses[0] == losses[1]
