"""A model from nothing, end to end on little text; and differences over seeds."""

import dataclasses
import math

import numpy as np
import pytest

from lib import architectures
from lib.metrics import bits_per_byte, perplexity, seeds
from lib.sources import models, texts
from lib.trainers import from_scratch, presets


@pytest.fixture(scope="module")
def corpus():
    preset = dataclasses.replace(
        presets.by_name("quick"), vocabulary=320, length=32, batch=8, micro_batch=4, unseen=16, every=8 * 32 * 5,
        sizes=presets.by_name("quick").sizes | {"hidden_size": 64, "intermediate_size": 128}, blocks=(2,),
    )  # fmt: skip
    return from_scratch.corpus(preset)


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


def test_text_shorter_than_a_batch_is_refused(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text(f"A short {split} text, which has a few words of its own. " * 9)
    preset = dataclasses.replace(presets.by_name("quick"), vocabulary=270, length=64)
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
