"""Mixtures against their formulas written out, and proxies that read what the weights say."""

import itertools

import numpy as np
import pytest
import torch

from lib.curation.document import Document
from lib.curation.mixtures import doge, domains, doremi, in_context, proxies, study, temperature, unimax
from lib.trainers.divergence import Diverged

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXTS = {
    "rivers": [
        f"The river {n} runs to the old mill and past the bridge of stone, again and again. " * 3 for n in range(30)
    ],
    "numbers": [" ".join(str(n * k) for k in range(60)) for n in range(1, 13)],
    "code": [f"def f{n}(x):\n    return x + {n}  # one more\n" * 5 for n in range(12)],
}


@pytest.fixture(scope="module")
def three():
    return domains.make(TEXTS, vocabulary=300, length=32)


def test_weights_by_size_are_those_of_their_formulas():
    sizes = np.array([1e6, 1e4, 100.0])
    assert np.allclose(temperature.weights(sizes, 1), sizes / sizes.sum())
    raised = sizes ** (1 / 3)
    assert np.allclose(temperature.weights(sizes, 3), raised / raised.sum())
    assert np.allclose(temperature.weights(sizes, np.inf), 1 / 3)
    assert np.allclose(unimax.weights(sizes, 300, 4), 1 / 3)  # enough of each
    found = unimax.weights(sizes, 90_000, 4) * 90_000
    assert np.allclose(found, [90_000 - 400 - 40_000, 40_000, 400])  # both small ones four times, the rest of the large
    assert np.allclose(unimax.weights(sizes, 4 * sizes.sum(), 4), sizes / sizes.sum())
    for call, said in (
        (lambda: temperature.weights([1, 0], 1), "leave empty ones out"),
        (lambda: temperature.weights([1, 2], 0), "above 0"),
        (lambda: unimax.weights([1, 2], 13, 4), "allow more passes"),
        (lambda: unimax.weights([], 1), "leave empty ones out"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_rows_are_drawn_as_the_weights_say_and_alike_for_each_mixture(three):
    drawn = proxies.draw(three, [0.5, 0.3, 0.2], steps=10, batch=4, seed=1).rows
    counts = np.bincount([int(row["domain"]) for row in drawn], minlength=3)
    assert len(drawn) == 40 and np.allclose(counts, [20, 12, 8], atol=1)
    other = proxies.draw(three, [0.2, 0.3, 0.5], steps=10, batch=4, seed=1).rows
    for domain in range(3):
        mine, its = ([row["input_ids"] for row in some if row["domain"] == domain] for some in (drawn, other))
        assert all(map(torch.equal, mine, its))
    only = proxies.draw(three, [1, 0, 0], steps=40, batch=4, seed=0).rows
    rows = {tuple(row["input_ids"].tolist()) for row in only[: len(three.rows["rivers"])]}
    assert rows == set(map(tuple, three.rows["rivers"].tolist()))  # all before one comes again
    for wrong in ([1, 1], [-1, 1, 1], [0, 0, 0], [np.nan, 1, 1]):
        with pytest.raises(ValueError, match="a number from 0 for each"):
            proxies.draw(three, wrong, steps=1, batch=4, seed=0)


def test_domains_keep_documents_out_and_refuse_what_is_too_little(three):
    assert set(three.names) == set(TEXTS) and np.isclose(three.natural.sum(), 1)
    for name, texts in TEXTS.items():
        whole = "".join(three.tokenizer.decode(row) for row in three.rows[name])
        assert len(three.unseen[name]) == max(1, round(0.1 * len(texts)))
        assert not [text for text in three.unseen[name] if text in whole]
    with pytest.raises(ValueError, match="domain 'b' fills no row"):
        domains.make({"a": TEXTS["rivers"], "b": ["short", "too"]}, vocabulary=300, length=32)
    with pytest.raises(ValueError, match="two or more"):
        domains.make({"a": TEXTS["rivers"]})


def batch_of(three, seed=0):
    rows = proxies.draw(three, three.uniform, steps=1, batch=6, seed=seed).rows
    return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "domain")}


def test_doremi_moves_weights_as_algorithm_1_says(three):
    model, reference = (proxies.build(three, seed, TINY) for seed in (0, 1))
    loss, batch = doremi.GroupDistributionallyRobust(reference, 3, rate=2.0, smoothing=0.1), batch_of(three)
    value = loss(model, batch)
    with torch.no_grad():
        logs = [
            each(input_ids=batch["input_ids"])
            .logits[:, :-1]
            .log_softmax(-1)
            .gather(-1, batch["input_ids"][:, 1:, None])
            for each in (model, reference)
        ]
    own, other = (-each[..., 0].double().numpy() for each in logs)
    of = batch["domain"].numpy()
    excess = np.array([np.maximum(own[of == d] - other[of == d], 0).sum() / own[of == d].size for d in range(3)])
    raised = np.exp(2.0 * excess) / 3
    alpha = 0.9 * raised / raised.sum() + 0.1 / 3
    assert np.allclose(loss.path[0], alpha, atol=1e-5)
    assert float(value.detach()) == pytest.approx(sum(alpha[d] * own[of == d].mean() for d in range(3)), abs=1e-4)
    same = doremi.GroupDistributionallyRobust(model, 3)
    same(model, batch)
    assert np.allclose(same.path[0], 1 / 3)  # nothing to learn from itself


def test_doge_moves_weights_by_products_of_gradients(three):
    model, batch = proxies.build(three, 0, TINY), batch_of(three)
    loss = doge.GeneralizationEstimation(3, rate=0.01, mu=0.1)
    loss(model, batch).backward()
    total = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    gradients = []
    for domain in range(3):
        model.zero_grad()
        proxies.token_losses(model, {"input_ids": batch["input_ids"][batch["domain"] == domain]}).mean().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    gain = [sum((each[name] * sum(g[name] for g in gradients)).sum() for name in each) for each in gradients]
    raised = np.exp(0.1 * np.array([float(each) for each in gain]))
    assert np.allclose(loss.path[0], raised / raised.sum(), atol=1e-5)
    for name, value in total.items():  # θ moves by Σ α ∇l
        expected = sum(float(a) * g[name] for a, g in zip(loss.path[0], gradients))
        assert torch.allclose(value, expected, atol=1e-5)


def test_weights_that_small_models_find_are_weights_and_repeat(three):
    options = {"steps": 3, "batch": 6, "sizes": TINY}
    for find in (doremi.find, doge.find):
        found, again = find(three, **options), find(three, **options)
        assert found.weights.sum() == pytest.approx(1) and found.path.shape == (3, 3)
        assert np.array_equal(found.path, again.path)
        with pytest.raises(ValueError, match="batch=2 of 3 domains"):
            find(three, steps=3, batch=2, sizes=TINY)
    with pytest.raises(Diverged, match="must be finite"):
        proxies.train(
            three, three.natural, steps=3, sizes=TINY, loss=lambda model, batch: model.lm_head.weight.sum() / 0
        )


@pytest.mark.long
def test_what_is_read_more_is_learned_better(three):
    arms = {"rivers": np.array([1, 0, 0.0]), "numbers": np.array([0, 1, 0.0])}
    order = [three.names.index(name) for name in ("rivers", "numbers")]
    arms = {name: np.eye(3)[place] for name, place in zip(arms, order)}
    found = study.compare(three, arms, range(2), steps=30, batch=4, sizes=TINY)
    for name, other in (("rivers", "numbers"), ("numbers", "rivers")):
        assert max(found[name][name]) < min(found[other][name])
    verdict = study.against(found, "rivers", "rivers")["numbers"]
    assert verdict.difference > 0 and verdict.n == 2 and verdict.pairs == 1


def test_related_documents_stand_behind_each_other(three):
    groups = np.repeat(np.eye(6)[:4], 5, axis=0) + np.random.default_rng(0).normal(0, 0.02, (20, 6))
    vectors = (groups / np.linalg.norm(groups, axis=1, keepdims=True)).astype(np.float32)
    mixed = np.random.default_rng(1).permutation(20)
    path = in_context.path(vectors[mixed], 4)
    assert sorted(path) == list(range(20))
    of = (mixed[path] // 5).tolist()
    assert sum(a != b for a, b in itertools.pairwise(of)) == 3  # each group once, whole
    shuffled = in_context.shuffled(20, 3)
    assert in_context.relatedness(vectors[mixed], path) > in_context.relatedness(vectors[mixed], shuffled)


@pytest.mark.long
def test_related_and_shuffled_documents_train_models_of_the_same_seeds(three):
    documents = [Document(text, text[:20]) for some in TEXTS.values() for text in some]
    found = study.related_against_shuffled(three, documents, [0, 1], steps=2, batch=4, sizes=TINY)
    assert set(found) == {"related", "shuffled"} and len(found["related"][study.MEAN]) == 2
    with pytest.raises(ValueError, match="two or more"):
        in_context.order(documents[:1])
