"""Near-duplicates against all pairs counted one by one, test passages taken out, languages told."""

import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest

from lib.curation import banding, decontaminate, fuzzy, language, pipeline, shingles, sources
from lib.curation.document import Document, identity, text_id
from lib.curation.tally import Tally

DATA = Path(os.environ.get("THIMBLE_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(not (DATA / "c4" / "web_lines.jsonl").is_file(), reason="THIMBLE_DATA names no texts")
ENGLISH = "Last week we walked along the river until the old bridge, where the boats wait for the summer guests. "
GERMAN = "Die Bäuerin fuhr gestern mit dem frühen Zug in die Stadt, um dort Äpfel, Käse und Eier zu verkaufen. "
CHINESE = "昨天下午,我和朋友一起去图书馆借了几本关于海洋和气候的书。"


def near(count=40, seed=0):
    """Groups of texts of which some words were replaced, from none to a third."""
    draw, found = random.Random(seed), []
    for group in range(count):
        words = [f"w{draw.randrange(5000)}" for _ in range(120)]
        for copy in range(3):
            changed = {draw.randrange(120) for _ in range(draw.choice((0, 1, 2, 4, 12, 40)) if copy else 0)}
            text = " ".join(f"x{draw.randrange(5000)}" if at in changed else word for at, word in enumerate(words))
            found.append(Document(text, f"{group}-{copy}"))
    return found


def exact_pairs(documents, threshold):
    """All pairs that are so similar, by comparing every text with every other."""
    sets = [set(shingles.of(document.text)) for document in documents]
    return {
        (one, other)
        for one, other in itertools.combinations(range(len(sets)), 2)
        if len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= threshold
    }


def test_bands_are_those_of_the_published_code():
    assert [banding.choose(threshold, 128) for threshold in (1.0, 0.9, 0.8, 0.7)] == [
        (1, 128),
        (5, 25),
        (9, 13),
        (14, 9),
    ]
    assert banding.probability(0.5, 3, 2) == pytest.approx(1 - (1 - 0.25) ** 3)
    for threshold, permutations in ((0, 128), (1.1, 128), (0.8, 0), (0.8, True)):
        with pytest.raises(ValueError, match="are allowed"):
            banding.choose(threshold, permutations)


def test_candidates_come_as_often_as_the_s_curve_says():
    """Pairs of sets with Jaccard 12/18, 14/16 and 1, by 9 x 13 numbers: within four binomial errors."""
    for shared, own, pairs in ((12, 3, 1000), (14, 1, 600), (15, 0, 50)):
        batch = []
        for pair in range(pairs):
            common = [f"c{pair}-{number}" for number in range(shared)]
            batch += [common + [f"{side}{pair}-{number}" for number in range(own)] for side in "ab"]
        hashes = fuzzy._banded(batch, 9, 13, seed=1)
        met = (hashes[::2] == hashes[1::2]).any(1).mean()
        expected = float(banding.probability(shared / (shared + 2 * own), 9, 13))
        assert abs(met - expected) <= 4 * np.sqrt(expected * (1 - expected) / pairs) + 1e-9


def test_each_pair_that_is_found_has_its_exact_similarity_and_few_are_missed():
    documents = near()
    found = fuzzy.pairs(documents, threshold=0.8)
    for (one, other), value in zip(found.places.tolist(), found.jaccard.tolist()):
        sets = [set(shingles.of(documents[place].text)) for place in (one, other)]
        assert value == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    texts = [document.text for document in documents]
    assert {(one, other) for one, other, _ in shingles.all_pairs(texts, 0.8)} == exact_pairs(documents, 0.8)
    truth, alike = exact_pairs(documents, 0.8), set(map(tuple, found.at_least(0.8).tolist()))
    assert alike <= truth and len(truth) > 30
    expected = sum(  # by the S-curve, of pairs that are at least so similar
        float(banding.probability(shingles.jaccard(*(shingles.of(documents[place].text) for place in pair)), 9, 13))
        for pair in truth
    )
    assert len(alike) >= expected - 4 * np.sqrt(len(truth) / 4)


def test_whatever_goes_is_like_one_that_stays_and_those_that_stay_are_not_alike():
    documents = near(seed=1)
    tally, decided = Tally("fuzzy"), fuzzy.decide(documents, seed=3)
    left = list(fuzzy.stage(documents, seed=3, tally=tally))
    gone = dict(zip(decided.dropped.tolist(), decided.partner.tolist()))
    assert len(left) + len(gone) == len(documents) and tally.dropped == {fuzzy.WHY: len(gone)}
    for place, partner in gone.items():
        assert partner not in gone and len(documents[partner].text) >= len(documents[place].text)
        assert shingles.jaccard(*(shingles.of(documents[each].text) for each in (place, partner))) >= 0.8
    alike = set(map(tuple, fuzzy.pairs(documents, seed=3).at_least(0.8).tolist()))
    stay = set(range(len(documents))) - gone.keys()
    assert not [pair for pair in alike if stay.issuperset(pair)]


def test_a_chain_keeps_its_ends_unless_asked():
    words = [f"w{number}" for number in range(400)]
    chain = [Document(" ".join(words[start : start + 200]), str(start)) for start in range(0, 120, 10)]
    ends = shingles.jaccard(shingles.of(chain[0].text), shingles.of(chain[-1].text))
    left = list(fuzzy.stage(chain, threshold=0.8, permutations=512))
    assert ends < 0.4 and len(left) > 3
    assert len(list(fuzzy.stage(chain, threshold=0.8, permutations=512, chains=True))) == 1
    alike = fuzzy.pairs(chain, threshold=0.8, permutations=512).at_least(0.8)
    assert fuzzy.components(alike, len(chain)) == [list(range(len(chain)))]


def test_few_and_short_documents():
    assert list(fuzzy.stage([])) == []
    one = Document("a b", "1")
    assert list(fuzzy.stage([one])) == [one]
    short = [one, Document("A, b!", "2"), Document("...", "3"), Document("!!!", "4"), Document("c", "5")]
    left = list(fuzzy.stage(short))
    assert len(left) == 4 and sum(document.id in "12" for document in left) == 1
    assert shingles.of("One two three four, five six.", 5) == ["one two three four five", "two three four five six"]
    assert shingles.jaccard([], []) == 0
    with pytest.raises(ValueError, match="5 words are usual"):
        fuzzy.decide([], ngram=0)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_which_stay_depends_neither_on_order_nor_on_shards(shards):
    documents = near(8)
    left = identity(fuzzy.stage(documents, seed=2))
    moved = random.Random(shards).sample(documents, len(documents))
    assert identity(fuzzy.stage(moved, seed=2)) == left
    decided, parts = fuzzy.decide(moved, seed=2), []
    for start in range(0, 24, 24 // shards):
        parts += decided.carry_out(moved[start : start + 24 // shards], Tally(), start)
    assert identity(parts) == left


@needs_data
def test_real_near_duplicates_are_found_beside_all_pairs():
    documents = list(sources.Shards(DATA / "c4" / "web_lines.jsonl"))[:250]
    truth = exact_pairs(documents, 0.5)
    found = fuzzy.pairs(documents, threshold=0.5)
    assert set(map(tuple, found.at_least(0.5).tolist())) <= truth
    assert len(found.at_least(0.5)) >= 0.8 * len(truth)


def test_paragraphs_of_a_test_go_and_the_others_stay(tmp_path):
    question = "Which of the following rivers flows through the city that hosted the games of the year named above?"
    mine = f"My diary.\n\nToday I read: {question.upper()} And I knew it.\n\n{ENGLISH}"
    documents = [Document(mine, "1"), Document(question, "2"), Document(ENGLISH, "3"), Document("", "4")]
    tally = Tally()
    left = list(decontaminate.stage(documents, tests=[question, "a short one"], tally=tally))
    assert [document.text for document in left] == [f"My diary.\n\n{ENGLISH}", ENGLISH, ""]
    assert tally.dropped == {decontaminate.NOTHING: 1} and tally.changed == {decontaminate.WHY: 1}
    assert len(list(decontaminate.stage(documents, tests=[]))) == 4
    twelve = " ".join(question.split()[:12])
    assert list(decontaminate.stage([Document(twelve, "5")], tests=[question])) == [Document(twelve, "5")]


@needs_data
def test_all_tasks_at_hand_are_looked_for(monkeypatch):
    named = {path.parent.name for path in decontaminate._paths()}
    assert {"mmlu", "hellaswag", "boolq", "gsm8k", "Py150"} <= named
    monkeypatch.setattr(decontaminate, "_paths", lambda: [DATA / "openbookqa" / "test.jsonl"])
    known = decontaminate.Passages.of(decontaminate.at_hand())
    rows = list(sources.Shards(DATA / "openbookqa" / "test.jsonl", text="question"))
    long = [row.text for row in rows if len(row.text.split()) > 20]
    assert long and all(known.share(text) for text in long) and not known.share(ENGLISH)


def test_languages_of_long_short_mixed_and_unknown_texts():
    assert language.of(ENGLISH * 3) == {"en": 1.0} and language.of(GERMAN) == {"de": 1.0}
    assert language.of(CHINESE) == {"zh": 1.0} and language.of("昨天下午,我和") == {"zh": 1.0}
    assert language.of("") == {} and language.of("12 + 3 = 15") == {}
    assert language.of("Yes.") == {"und": 1.0}
    assert language.of(f"Oh!\n{GERMAN}") == {"de": 1.0}  # a short line counts as what is around it
    mixed = language.of(f"{ENGLISH}\n{GERMAN}\n{GERMAN}")
    assert list(mixed) == ["de", "en"] and language.is_mixed(mixed) and not language.is_mixed({"de": 1.0})
    assert list(language.of("qwpo zxmn vbqw oiuz xmnc qpwo eiru zmxn cbvq wpoe irut")) == ["und"]
    documents = [Document(text, str(number)) for number, text in enumerate((ENGLISH, GERMAN, CHINESE, "Yes."))]
    tally = Tally()
    left = list(language.stage(documents, languages=["en", "de"], tally=tally))
    assert [document.metadata["language"] for document in left] == ["en", "de"]
    assert tally.dropped == {"zh": 1, "und": 1}
    assert [document.metadata["language"] for document in language.stage(documents)] == ["en", "de", "zh", "und"]
    with pytest.raises(ValueError, match="codes of ISO 639"):
        list(language.stage([], languages=["English"]))
    assert language.confusion([ENGLISH, GERMAN, "Yes."], ["en", "de", "en"]) == {
        ("en", "en"): 1,
        ("de", "de"): 1,
        ("en", "und"): 1,
    }


def test_stages_together_over_shards(tmp_path):
    documents = near(10)
    texts = [*(document.text for document in documents), *(f"{ENGLISH}{number}" for number in range(4))]
    found = []
    for count in (1, 4):
        folder = tmp_path / f"in {count}"
        folder.mkdir()
        for shard in range(count):
            lines = "".join(Document(text, text_id(text)).line() + "\n" for text in texts[shard::count])
            (folder / f"{shard}.jsonl").write_text(lines)
        stages = ["language", ("fuzzy", {"threshold": 0.7}), ("decontaminate", {"tests": [ENGLISH]})]
        if count == 1:
            with pytest.raises(ValueError, match="is no JSON"):
                pipeline.run(folder, [("decontaminate", {"tests": {ENGLISH}})], tmp_path / "none")
        found.append(pipeline.run(folder, stages, tmp_path / f"out {count}"))
    assert found[0].sha256 == found[1].sha256 and found[0].table == found[1].table
    assert sum(found[0].tallies["decontaminate"].dropped.values()) >= 1
