"""What stages are worth: every stage gets the same tokens, text kept out is in none of them, and a table says what."""

import pytest

from lib.curation.document import Document
from lib.curation.mixtures import study
from lib.evaluation import corpus_worth

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
KEPT_OUT = "Never seen before: " + " ".join(f"word{n}" for n in range(40))


@pytest.mark.long
def test_stages_are_compared_with_raw_on_equal_tokens(monkeypatch):
    documents = [Document(f"The mill by river number {n // 2} has a wheel of wood. " * 12, str(n)) for n in range(40)]
    documents.append(Document(f"{documents[0].text}\n\n{KEPT_OUT}", "test"))
    read = []
    train = corpus_worth.proxies.train
    monkeypatch.setattr(
        corpus_worth.proxies,
        "train",
        lambda domain, *rest, **given: read.append((domain, given)) or train(domain, *rest, **given),
    )
    options = {"steps": 2, "seeds": [0, 1], "packaged": ["packaged_facts"], "samples": 2, "vocabulary": 300}
    rows = corpus_worth.measure(documents, ["exact"], {"kept": [KEPT_OUT]}, length=32, batch=2, sizes=TINY, **options)
    assert [row["stage"] for row in rows] == ["raw", "exact"] and [row["documents"] for row in rows] == [41, 20]
    assert rows[0]["seconds_per_gigabyte"] is None and rows[1]["seconds_per_gigabyte"] > 0
    assert rows[1]["passes"] > rows[0]["passes"] > 0
    assert all(len(values) == 2 for row in rows for values in row["scores"].values())
    assert set(rows[0]["scores"]) == {"kept", study.MEAN, "packaged_facts"}
    assert [given["seed"] for _, given in read] == [0, 1, 0, 1] and {given["steps"] for _, given in read} == {2}
    assert all("word7" not in domain.tokenizer.decode(domain.rows["all"].flatten()) for domain, _ in read)
    assert list(corpus_worth.against_raw(rows)) == ["1 exact"]
    with pytest.raises(ValueError, match="gopher leaves 0 documents"):
        corpus_worth.measure(
            documents,
            [("gopher", {"limits": {"words": (900, 999)}})],
            {"kept": [KEPT_OUT]},
            length=32,
            batch=2,
            sizes=TINY,
            **options,
        )


class Likes:
    """p(good) of texts: how many of the words are "mill"."""

    def probability(self, texts):
        return [text.split().count("mill") / max(1, len(text.split())) for text in texts]


@pytest.mark.long
def test_the_threshold_is_that_of_the_best_models_or_none(monkeypatch):
    from lib.curation import quality_model

    monkeypatch.setattr(quality_model, "QualityModel", Likes)
    good = [Document(f"mill mill mill river {n} " * 20, f"good {n}") for n in range(20)]
    bad = [Document(f"x{n} y{n * 7 % 13} z{n * 5 % 11} " * 20, f"bad {n}") for n in range(60)]
    options = {
        "steps": 12,
        "seeds": [0, 1, 2],
        "packaged": [],
        "vocabulary": 300,
        "length": 32,
        "batch": 2,
        "sizes": TINY,
    }
    for unseen, expected in ((["mill mill mill river 99 " * 9], 0.5), ([bad[0].text.replace("x0", "x77")], None)):
        found = corpus_worth.choose_threshold(good + bad, Likes(), [0.5], {"kept": unseen}, **options)
        assert found["threshold"] == expected and [row["documents"] for row in found["rows"]] == [80, 20]
