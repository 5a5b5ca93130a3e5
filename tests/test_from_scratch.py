"""A model from nothing, end to end on little text; and differences over seeds."""

import dataclasses
import functools
import json
import math
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from lib import architectures, files, tokenization
from lib.metrics import bits_per_byte, perplexity, seeds
from lib.sources import contamination, models, texts, token_file
from lib.trainers import from_scratch, presets, samples, utilization
from lib.trainers.recipe import Recipe


def small(**changes):
    """The quick preset with a tiny model."""
    sizes = presets.by_name("quick").sizes | {"hidden_size": 64, "intermediate_size": 128}
    given = dict(
        sizes=sizes, vocabulary=320, length=32, batch=8, micro_batch=4, unseen=16, every=8 * 32 * 5, blocks=(2,)
    )
    return dataclasses.replace(presets.by_name("quick"), **given | changes)


@pytest.fixture(scope="module")
def corpus():
    return from_scratch.corpus(small())


def test_from_text_to_a_saved_model(corpus, tmp_path):
    found = from_scratch.train("headwise", corpus, tokens=8 * 32 * 20, folder=tmp_path / "run")
    assert found.history.losses[0] == pytest.approx(math.log(320), abs=0.3)
    assert found.history.losses[-1] < found.history.losses[0] - 0.5 and len(found.history.losses) == 20
    assert [tokens for tokens, _ in found.losses] == [1280, 2560, 3840, 5120] and found.tokens_per_second > 0
    again, tokenizer = models.load(str(tmp_path / "run" / "model"))
    assert type(again).__name__ == "HeadwiseForCausalLM" and len(tokenizer) == 320
    value = math.log(perplexity.measure(again, corpus.unseen).value)
    assert found.losses[-1][1] == pytest.approx(value, abs=1e-5)
    own = bits_per_byte.measure(again, texts.load("packaged", split="valid").documents[:3], length=32).value
    assert found.bits_per_byte[-1][1] == pytest.approx(own, rel=0.3)  # other windows of the same text


def test_seeds_pair_the_order_of_data(corpus, monkeypatch):
    rows = {}
    for name, seed in (("plain", 0), ("talking_heads", 0), ("plain", 1)):
        seen = rows.setdefault((name, seed), [])
        monkeypatch.setattr(from_scratch.next_token, "loss", recording(seen, from_scratch.next_token.loss))
        from_scratch.train(name, corpus, tokens=8 * 32 * 2, seed=seed)
        monkeypatch.undo()
    assert rows["plain", 0] == rows["talking_heads", 0] != rows["plain", 1] and len(rows["plain", 0]) == 4


def recording(seen, loss):
    def recorded(model, batch):
        seen.append(batch["window"].tolist())
        return loss(model, batch)

    return recorded


def test_nothing_unseen_is_trained_on(corpus):
    known = {tuple(row) for row in corpus.rows.ids.tolist()}
    assert not any(tuple(row) in known for row in corpus.unseen.tolist())


def test_tokens_stay_in_a_file_whatever_holds_the_text(tmp_path, monkeypatch):
    """Documents in files, or one too long to be tokenized as one, give the rows that they give in memory."""
    documents = texts.load("packaged", "train").documents[:30]
    lines = "\n".join(json.dumps({"text": text}) for text in [*documents, " ".join(documents)])
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "valid.jsonl").write_text(json.dumps({"text": texts.load("packaged", "valid").documents[0]}))
    whole = from_scratch.corpus(small(), text=str(tmp_path))
    assert isinstance(whole.rows.stream, np.memmap)
    plainly = tokenization.ids(whole.tokenizer, list(contents(tmp_path)), False)
    assert whole.rows.ids.flatten().tolist() == [id for ids in plainly for id in (*ids, 0)][: 32 * len(whole.rows)]
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    loaded = functools.partial(texts.load, in_memory=0)
    monkeypatch.setattr(texts, "load", loaded)
    of_documents = functools.partial(token_file.of_documents, chunk=3000, overlap=400)
    monkeypatch.setattr(token_file, "of_documents", of_documents)
    streamed = from_scratch.corpus(small(), text=str(tmp_path))
    assert streamed.rows.identity == whole.rows.identity and torch.equal(streamed.unseen, whole.unseen)


def contents(folder):
    seen, unseen = (texts.load(str(folder), split) for split in ("train", "valid"))
    return contamination.without(seen, unseen).documents


def test_documents_may_see_each_other_where_asked(corpus):
    open_ = from_scratch.corpus(small(), block_diagonal=False)
    assert torch.equal(open_.rows.tensor(), corpus.rows.ids)
    assert "position_ids" in corpus.rows[0] and not hasattr(open_.rows[0], "keys")
    history = from_scratch.train("plain", open_, tokens=8 * 32 * 2).history
    assert len(history.losses) == 2 and history.tokens == 8 * 32 * 2


@pytest.mark.skipif(files.data() is None, reason="THIMBLE_DATA names no folder")
@pytest.mark.parametrize("name", ["novels_en", "tinyshakespeare", "wikitext2", "redpajama_sample"])
def test_the_real_texts_fill_rows(name):
    if not (files.data() / name).is_dir():
        pytest.skip(f"THIMBLE_DATA has no {name}")
    seen, unseen = (texts.load(name, split) for split in ("train", "valid"))
    assert seen.characters > 2 * unseen.characters > 100_000 and not set(seen.documents) & set(unseen.documents)


def test_samples_at_five_points_leave_the_training_as_it_is(corpus):
    options = dict(tokens=8 * 32 * 9)
    seen, losses = samples.Samples(corpus.tokenizer, "The", 9, new_tokens=3, then=lambda *given: told.append(given)), []
    told = []
    for watch in (None, seen):
        losses.append(from_scratch.train("head_gate", corpus, **options, watch=watch).history.losses)
    assert losses[0] == losses[1] == [loss for _, _, loss in told] and [step for _, step, _ in told] == [*range(1, 10)]
    assert list(seen.texts) == [1, 2, 4, 7, 9] and all(seen.texts.values())
    with pytest.raises(ValueError, match=r"prompt='', steps=9, .* a prompt of a token or more"):
        samples.Samples(corpus.tokenizer, "", 9)


def test_what_can_not_be_trained_is_refused_before_the_first_step(corpus, tmp_path, monkeypatch):
    watch = pytest.fail  # a step was taken
    odd = dataclasses.replace(corpus, preset=small(sizes=corpus.preset.sizes | {"num_attention_heads": 5}))
    with pytest.raises(ValueError, match="num_attention_heads=5 do not divide hidden_size=64"):
        from_scratch.train("plain", odd, tokens=512, watch=watch)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 1 << 10))
    with pytest.raises(OSError, match=r"needs \d+ MB and its disk has 0 MB free"):
        from_scratch.train("plain", corpus, tokens=512, watch=watch, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_training_resumes_with_its_own_architecture_data_and_seed_only(corpus, tmp_path):
    options = {"tokens": 256, "folder": tmp_path / "run"}
    from_scratch.train("head_gate", corpus, **options)
    other = dataclasses.replace(corpus, rows=corpus.rows[1:])
    hashed = "[0-9a-f]{12}"
    for arm, data, change, said in (
        ("headwise", corpus, {}, "architecture=GatedForCausalLM there, HeadwiseForCausalLM here"),
        ("head_gate", other, {}, rf"data={hashed} there, {hashed} here\); use"),
        ("head_gate", corpus, {"seed": 1}, r"seed=0 there, 1 here"),
        ("head_gate", corpus, {"blocks": 1}, rf"model={hashed} there, {hashed} here"),
    ):
        with pytest.raises(ValueError, match=rf"holds another job \(.*{said}"):
            from_scratch.train(arm, data, watch=pytest.fail, **options, **change)
    from_scratch.train("head_gate", corpus, watch=pytest.fail, **options)  # its own is finished


def test_what_compiling_costs_is_told(corpus, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for compile in (False, True):
        made = dataclasses.replace(corpus, preset=small(recipe=Recipe(compile=compile)))
        history = from_scratch.train("plain", made, tokens=3 * 256).history
        line = f"torch.compile: the first step took {utilization.start_up(history):.1f} s longer"
        assert (line in capsys.readouterr().out) == compile


def test_text_shorter_than_a_batch_is_refused(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text(f"A short {split} text, which has a few words of its own. " * 9)
    preset = dataclasses.replace(presets.by_name("quick"), vocabulary=270, length=64, batch=16, micro_batch=16)
    with pytest.raises(ValueError, match=r"fills \d+ rows of 64 tokens and a batch takes 16"):
        from_scratch.corpus(preset, text=str(tmp_path))


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_have_the_weights_that_they_promise(name):
    made = presets.by_name(name)
    least, most = {"quick": (0.9, 1.2), "evening": (0.75, 1.5), "cpu": (2, 6), "gpu": (75, 110)}[name]
    for arm in made.arms:
        for blocks in made.blocks:
            sizes = made.sizes | {"vocab_size": made.vocabulary or 49152, "num_hidden_layers": blocks}
            config = architectures.configuration(arm, sizes)
            kind = architectures.by_name(arm)
            weights = architectures.controls.weights(kind, config)
            assert least * 1e6 <= weights <= most * 1e6, (arm, blocks, weights)
    assert made.batch % made.micro_batch == 0 and made.length <= made.sizes["max_position_embeddings"]
    with pytest.raises(ValueError, match="did you mean 'quick'"):
        presets.by_name("quik")


def test_differences_over_seeds():
    generator = np.random.default_rng(0)
    noise = {seed: generator.normal() for seed in range(5)}
    arm = {seed: 3.0 + noise[seed] + 0.01 * seed for seed in range(5)}
    found = seeds.paired(arm, {seed: 3.1 + noise[seed] for seed in range(5)})
    assert found.value == pytest.approx(-0.08) and found.n == 5
    reach = 2.776445 * np.std([0.01 * seed for seed in range(5)], ddof=1) / 5**0.5
    assert (found.low, found.high) == pytest.approx((-0.08 - reach, -0.08 + reach), rel=1e-5)
    for values in ({0: 1.0}, {0: 1.0, 1: 2.0}):
        with pytest.raises(ValueError, match="intervals over seeds need 3 different ones or more"):
            seeds.spread(values)
    with pytest.raises(ValueError, match=r"seeds \[0\] and \[1\]; pairs need the same ones"):
        seeds.paired({0: 1.0}, {1: 1.0})


def test_the_detectable_difference_is_found_as_often_as_promised():
    effect = seeds.detectable(0.001, 5)
    draws = np.random.default_rng(0).normal(effect, 0.001, (20_000, 5))
    t = draws.mean(1) / (draws.std(1, ddof=1) / 5**0.5)
    assert (t > 2.776445).mean() == pytest.approx(0.8, abs=0.02)
    assert seeds.detectable(0.001, 10) < effect and seeds.detectable(0.002, 5) == pytest.approx(2 * effect)
    with pytest.raises(ValueError, match="need 3"):
        seeds.detectable(0.001, 1)
