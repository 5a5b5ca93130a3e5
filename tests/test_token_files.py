"""Texts that stay in their files: documents, tokens and windows are those of the same text in memory."""

import functools
import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from lib import files
from lib.metrics import bits_per_byte, guards, perplexity
from lib.sources import (
    chunks,
    contamination,
    file_formats,
    paragraphs,
    readers,
    streams,
    texts,
    token_file,
    token_windows,
)
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
    before = ["before", ""]
    assert list(before + both) == ["before", *both]


def test_bytes_that_are_not_utf8_are_named_where_they_are(folder):
    (folder / "test.txt").write_bytes("ä\n".encode() * 40 + b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"test\.txt is not UTF-8: byte 0xe9 at offset 123, line 41;"):
        texts.load("test.txt", in_memory=0)


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl", "train.parquet"])
def test_a_long_line_is_read_in_pieces_or_refused(folder, monkeypatch, name):
    monkeypatch.setattr(file_formats, "LONGEST", 1000)
    line = "a line without an end " * 50
    write(folder / name, ["short", line])
    if name == "train.jsonl":
        with pytest.raises(ValueError, match=r"train\.jsonl line 3 has more than 0 MB; .* or the text as a \.txt"):
            texts.load(name, "train", in_memory=0)
    else:
        assert texts.load(name, "train", in_memory=0).text == ("short" + ("" if "txt" in name else "\n\n") + line)


def test_long_rows_of_a_table_are_read_a_few_at_once(folder, monkeypatch):
    monkeypatch.setattr(file_formats, "BLOCK", 400)
    from pyarrow import parquet

    write(folder / "train.parquet", [f"{number}" * 2000 for number in range(9)])
    rows, own = [], parquet.ParquetFile.iter_batches

    def counted(*given, **options):
        for batch in own(*given, **options):
            rows.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    assert len(texts.load("train.parquet", "train", in_memory=0).documents) == 9 and max(rows) < 9


PARAGRAPHS = st.lists(
    st.sampled_from(["a", "b c", "d", ".", " ", "\n", "\n\n", "\n \n\n", "é-f_g", "h" * 30]), max_size=40
)


@settings(max_examples=200)
@example([" ", " ", "h" * 30, "a"], 1, 31)
@drawn(PARAGRAPHS, st.integers(1, 9), st.integers(1, 40))
def test_paragraphs_of_pieces_are_those_of_the_whole(parts, size, longest):
    whole, read, words = "".join(parts), [""], [""]
    pieces = [whole[place : place + size] for place in range(0, len(whole), size)]
    for fragment, ends in paragraphs.fragments(pieces, longest=longest):
        read[-1] += fragment
        if max(map(len, re.findall(r"[^\W_]+", whole)), default=0) <= longest:  # else a word is cut
            assert not (words[-1][-1:].isalnum() and fragment[:1].isalnum())
        words[-1] = "" if ends else fragment
        read += [""] * ends
    assert read == [*paragraphs.BLANK.split(whole), ""]


def sentences(seed, count=30):
    drawn = np.random.default_rng(seed)
    return [" ".join(drawn.choice(list("abc"), drawn.integers(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ["train.txt", "train.jsonl"])
def test_what_two_texts_share_is_found_in_pieces_as_in_memory(folder, monkeypatch, name, at_once):
    monkeypatch.setattr(contamination, "AT_ONCE", at_once)
    gaps = ["\n\n", ".\n", "\n \n\n"]
    mine = "".join(each + gaps[place % 3] for place, each in enumerate(sentences(0)))
    write(folder / name, [mine, "\n", "other words", *sentences(1, 9), mine])
    write(folder / "test.jsonl", sentences(2, 5))
    held, streamed = (texts.load(name, "train", in_memory=size) for size in (1 << 20, 0))
    others = [texts.load("test.jsonl", "test", in_memory=size) for size in (1 << 20, 0)]
    expected = contamination.without(held, others[0], words=5)
    known = {run for document in others[0].documents for run in contamination.passages(document, 5)}
    split = [paragraphs.BLANK.split(document) for document in held.documents]
    kept = [[part for part in parts if known.isdisjoint(contamination.passages(part, 5))] for parts in split]
    left = [a if some == all_ else "\n\n".join(some) for a, some, all_ in zip(held.documents, kept, split)]
    assert 0 < sum(map(len, kept)) < sum(map(len, split))
    assert expected.documents == [each for each in left if each.strip()] and expected.sha256 != held.sha256
    for longest in (3, 1 << 20):
        monkeypatch.setattr(contamination, "fragments", functools.partial(paragraphs.fragments, longest=longest))
        for other in others:
            found = contamination.without(streamed, other, words=5)
            assert found.streamed and list(found.documents) == expected.documents
            assert found.sha256 == expected.sha256 and found.origin == expected.origin
    write(folder / name, [mine[:40], "other words"])
    with pytest.raises(ValueError, match="has changed since it was loaded"):
        list(found.documents)


def test_samples_in_a_streamed_text_are_found(folder, monkeypatch):
    monkeypatch.setattr(paragraphs.fragments, "__kwdefaults__", {"longest": 20})
    words = " ".join(f"word{number}" for number in range(40))
    write(folder / "train.txt", ["One,\n\n" + words.replace("word20 ", "word20\n\n"), "\nand more"])
    samples = {"in it": words[30:200], "its end": words[-120:] + " and"}
    samples["elsewhere"] = " ".join(words.split()[9:33]).replace("word21", "another")
    for in_memory in (1 << 20, 0):
        text = texts.load("train.txt", "train", in_memory=in_memory)
        assert [*guards.contamination(samples, text.documents).found] == ["in it", "its end"]


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


@pytest.mark.parametrize("harm", ["cut", "missing", "other", "no json", "changed"])
def test_a_file_that_is_not_whole_is_made_again(folder, text, harm):
    before = np.array(token_file.mapped(text, tiny.tokenizer()))
    about, ids = made(folder)
    (about.parent / ".ids.bin.12345678.tmp").write_bytes(b"of a process that was killed")
    if harm == "cut":
        ids.write_bytes(ids.read_bytes()[:-4])
    elif harm == "changed":
        ids.write_bytes(ids.read_bytes()[:-4] + b"\1\0\0\0")
    elif harm == "missing":
        ids.unlink()
    else:
        about.write_text(about.read_text().replace(text.sha256, "0" * 64) if harm == "other" else "{")
    assert (token_file.mapped(text, tiny.tokenizer()) == before).all() and made(folder) == [about, ids]
    assert not list(about.parent.glob(".*.tmp"))


@pytest.mark.parametrize("step", [(os, "fsync"), (os, "replace"), (files, "write_text"), (token_file, "_make_room")])
def test_what_a_kill_left_is_cleared_up_and_made_anew(folder, text, monkeypatch, step):
    with monkeypatch.context() as patch:
        patch.setattr(*step, lambda *given: os.kill(os.getpid(), signal.SIGKILL))
        process = multiprocessing.get_context("fork").Process(target=token_file.mapped, args=(text, tiny.tokenizer()))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [path.name for path in (folder / "a home with é" / "data" / "cache" / "tokens").glob("*/*")]
    assert "about.json" not in left and left
    assert bytes(token_file.mapped(text, tiny.tokenizer()).astype(np.uint8)) == text.text.encode()
    assert [path.name for path in made(folder)] == ["about.json", "ids.bin"]


def test_a_text_that_changed_since_it_was_loaded_is_refused(folder, text):
    path = folder / "train.jsonl"
    before, content = path.stat(), path.read_text()
    write(path, WORDS[:-1])
    with pytest.raises(ValueError, match=r"train\.jsonl has changed since it was loaded; .* load it again"):
        texts.tokens(text.windows(2, 8), tiny.llama())
    path.write_text(content.replace("line", "LINE"))  # as many bytes in the same file, and its time put back
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"the files of train\.jsonl/train have changed since .* load it again"):
        texts.tokens(text.windows(2, 8), tiny.llama())
    assert made(folder) == []


def test_a_full_disk_is_said_before_anything_is_written(folder, text, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: Full)
    with pytest.raises(OSError, match=r"ids\.bin needs 0 MB and its disk has 0 MB free; free some space"):
        texts.tokens(text.windows(2, 8), tiny.llama())
    assert made(folder) == []


def test_tokens_that_nobody_asked_for_give_way_on_a_full_disk(folder, text, monkeypatch):
    """The oldest goes, and who reads it goes on; those asked for since, and one that somebody writes, stay."""

    def tokenizer(*added):
        changed = tiny.tokenizer()
        changed.add_tokens([*added])
        return changed

    first, second, third = (token_file.mapped(text, tokenizer(*added)) for added in ((), ("line",), ("of",)))
    for age, path in zip((3, 2, 1), (first, second, third)):
        about = Path(path.filename).with_name("about.json")
        os.utime(about, ns=(about.stat().st_atime_ns, about.stat().st_mtime_ns - age * 10**9))
    ids = np.array(second)
    token_file.mapped(text, tokenizer())  # asked for again
    folders = [Path(path.filename).parent for path in (first, second, third)]

    def usage(_):
        return Full if all(path.exists() for path in folders[1:2]) else type("Free", (), {"free": 1 << 30})

    monkeypatch.setattr(files.shutil, "disk_usage", usage)
    token_file.mapped(text, tokenizer("Wörter"))
    assert [path.exists() for path in folders] == [True, False, True] and (second == ids).all()


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
        some = loop.tokens_of(given.windows(20, 16, seed=1), model)[1::2]
        assert torch.equal(texts.tokens(some, model), texts.tokens(held.windows(20, 16, seed=1), model)[1::2])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl"])
def test_a_streamed_text_scores_what_it_scores_in_memory(folder, monkeypatch, name):
    monkeypatch.setattr(token_windows, "_AT_ONCE", 40)
    write(folder / name, WORDS[:9])
    held, streamed = (texts.load(name, "train", in_memory=size) for size in (1 << 20, 0))
    model = tiny.llama(num_hidden_layers=1)
    for options in ({"windows": 9, "length": 16}, {"length": 20}):
        a, b = (perplexity.measure(model, text, **options) for text in (held, streamed))
        assert (b.value, b.stderr, b.n, b.baseline) == pytest.approx((a.value, a.stderr, a.n, a.baseline), rel=1e-6)
    for options in ({"length": 24, "stride": 7}, {"length": 500, "characters": 30}, {"length": 9}):
        a, b = (bits_per_byte.measure(model, text, **options) for text in (held, streamed))
        assert (a.value, a.stderr, a.n, a.baseline) == (b.value, b.stderr, b.n, b.baseline)
