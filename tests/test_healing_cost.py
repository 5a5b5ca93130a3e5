"""What healing a trimmed vocabulary costs: which rows it reads, what it reports, and that no text is lost."""

import copy
import json

import hypothesis
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import strategies

from lib import files
from lib.sources import texts
from lib.tokenizers import across, copies, entries, healing_cost, usage
from tests.test_trim import OTHER, TEXT, model_of, on_bytes


@pytest.fixture(scope="module")
def trimmed():
    """(the whole model, a trimmed copy, its text)"""
    tokenizer = on_bytes()
    whole = model_of(tokenizer)
    text = texts.Text("mine", "train", [TEXT[0], f"{OTHER} foxes of zeal and quizzes. " * 12])
    return whole, copies.trimmed(whole, usage.count(tokenizer, TEXT), 0.9), text


def test_each_text_counts_alike_whatever_its_length():
    tokenizer = on_bytes()
    short, long = texts.Text("a", "train", ["the cat"]), texts.Text("b", "train", ["zeal and quizzes " * 500])
    found = healing_cost.counts(tokenizer, {"a": short, "b": long})
    parts = [usage.count(tokenizer, each.documents) for each in (short, long)]
    expected = sum(part / part.sum() for part in parts) / 2 * healing_cost.COUNTED
    assert np.allclose(found, expected, atol=0.51)


def test_passages_are_drawn_once_and_rows_that_changed_most_come_first(trimmed):
    whole, smaller, text = trimmed
    drawn = healing_cost.passages(text, 5, 60, seed=1)
    assert drawn == healing_cost.passages(text, 5, 60, seed=1) and all(piece in text.text for piece in drawn)
    rows = across.rows(healing_cost.passages(text, 30, 60), whole.tokenizer, smaller.tokenizer, 64)
    best = healing_cost.changed_most(rows, 4)
    split = [int((row["places"] == across.NOWHERE).sum()) for row in rows.rows]
    assert [int((row["places"] == across.NOWHERE).sum()) for row in best] == sorted(split, reverse=True)[:4]
    assert split and max(split) > 0


def test_healing_moves_the_trimmed_model_to_the_whole_one(trimmed):
    whole, smaller, text = trimmed
    healed = copy.deepcopy(smaller)
    healed.tokenizer = smaller.tokenizer
    given = {"steps": 6, "learning_rate": 3e-3, "batch": 2, "length": 32}
    history = healing_cost.heal_(healed, whole, {"mine": text}, **given)
    assert len(history.losses) == 6 and history.losses[-1] < history.losses[0]
    before, after = (dict(model.named_parameters()) for model in (smaller, healed))
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    read = {"mine": healing_cost.passages(text, 4, 80)}
    assert healing_cost.nats(healed, read, 64)["mine"].shape == (4,)


@pytest.mark.long
def test_the_command_reports_all_of_it(trimmed, monkeypatch, tmp_path):
    whole, _, text = trimmed
    monkeypatch.setattr(healing_cost.models, "load", lambda name: (whole, whole.tokenizer))
    monkeypatch.setattr(healing_cost, "_splits", lambda names: ({"mine": text}, {"mine": text}))
    out = tmp_path / "found.json"
    arguments = ["x", "--texts", "mine", "--share", "0.9", "--steps", "2", "--passages", "4", "--characters", "80"]
    found = healing_cost.main([*arguments, "--file", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert found["entries"][1] == round(0.9 * found["entries"][0]) and found["processor_seconds"] > 0
    assert set(found["not_counted"]) == set(usage.SAMPLES) and found["healed"]["mine"]["n"] == 4
    assert found["round_trips"][0] == found["round_trips"][1] == 4 + len(usage.SAMPLES)
    with pytest.raises(SystemExit):
        healing_cost.main([*arguments[:3], "--share", "0.01", "--passages", "4", "--characters", "80"])


@pytest.mark.long
def test_two_thirds_of_the_packaged_vocabulary_write_all_that_the_whole_one_writes():
    """Every string but those with one of 21 bytes that the whole vocabulary has no entry for, and loses too."""
    from transformers import AutoTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    path = files.checkpoints() / "smollm2-135m-instruct"
    if not path.is_dir():
        pytest.skip("the packaged model is not made yet")
    tokenizer = AutoTokenizer.from_pretrained(path)
    vocabulary = entries.Vocabulary(tokenizer)
    kept = vocabulary.kept(np.arange(len(tokenizer))[::-1], 2 * len(tokenizer) // 3)
    lacking = {byte for byte, sign in bytes_to_unicode().items() if sign not in vocabulary.ids}
    assert len(lacking) == 21
    whole, core = (
        tokenizer.backend_tokenizer,
        tokenizers.Tokenizer.from_str(json.dumps(vocabulary.without_others(kept))),
    )

    @hypothesis.settings(max_examples=500, deadline=None)
    @hypothesis.given(text=strategies.text(strategies.characters(codec="utf-8")))
    def holds(text):
        wrote = [
            each.decode(each.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            for each in (whole, core)
        ]
        assert wrote[0] == wrote[1] and (wrote[1] == text or lacking.intersection(text.encode()))

    holds()
