"""Conversations side by side without leaks, what a data set holds before training, and samples of tasks left out."""

import pytest
import torch

from lib.finetuning import overlap, packing, statistics
from lib.metrics import guards
from lib.sources import conversation_rows, conversations, hub, hub_head
from lib.sources.conversations import Conversation, Turn
from lib.tasks.task import Generation, Sample, Task
from lib.trainers import answer_rows, loop, minibatch, next_token
from lib.trainers.minibatch import IGNORED
from tests import tiny


def talk(asked, answered, where="a row"):
    return Conversation((Turn("user", asked), Turn("assistant", answered)), where)


TALKS = [talk("a" * (1 + 7 * place % 19), "b" * (3 + 5 * place % 23), f"row {place}") for place in range(12)]


@pytest.mark.parametrize("family", [tiny.llama, tiny.qwen3, tiny.gemma3])
def test_packed_conversations_have_the_outputs_and_losses_of_unpacked_ones(family):
    model = family()
    given = answer_rows.rows(TALKS, tiny.tokenizer(), length=96)
    rows = packing.packed(given, model, length=160)
    assert len(rows) < len(given) and all(len(row["input_ids"]) == 160 for row in rows)
    assert sorted(name for names in rows.where for name in names) == sorted(given.where)
    alone = {name: row for name, row in zip(given.where, given)}
    batch = minibatch.collate(list(rows))
    with torch.no_grad():
        found = model(**minibatch.inputs(batch), use_cache=False).logits
        for row, logits, names in zip(rows, found, rows.where):
            place = 0
            for name in names:
                ids = alone[name]["input_ids"]
                wanted = model(input_ids=ids[None]).logits[0]
                torch.testing.assert_close(logits[place : place + len(ids)], wanted, rtol=1e-4, atol=1e-4)
                place += len(ids)
            assert (row["labels"][place:] == IGNORED).all()  # what fills a row is not learned
    assert rows.filler
    losses = [next_token.loss(model, minibatch.collate(list(each))) for each in (rows, given)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    leaking = {"input_ids": batch["input_ids"], "labels": batch["labels"]}  # positions that go on across borders
    assert (next_token.loss(model, leaking) - losses[0]).abs() > 1e-3


def test_a_training_on_packed_rows_takes_the_steps_of_one_on_unpacked_rows():
    given = answer_rows.rows(TALKS, tiny.tokenizer(), length=96)
    after = []
    for pack in (True, False):
        model = tiny.llama()
        rows = packing.packed(given, model, length=160) if pack else given
        loop.train_(model, rows, next_token.loss, steps=2, batch=len(rows), learning_rate=1e-3)
        after.append(model(input_ids=tiny.tokens(2, 16)).logits.detach())
    torch.testing.assert_close(*after, rtol=1e-3, atol=1e-3)


def test_rows_are_filled_as_well_as_they_can_be(capsys):
    # 7 and 2 fill a row, 5 and 4 another; 3 and 2 are left
    assert packing.fitted([5, 3, 7, 2, 2, 4], 9) == [[0, 5], [1, 4], [2, 3]]
    given = answer_rows.rows(TALKS, tiny.tokenizer(), length=96)
    rows = packing.packed(given, tiny.llama(), length=96)
    assert rows.filler == 96 * len(rows) - given.tokens[0]
    assert f"12 conversations in {len(rows)} rows of 96 tokens, " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"length=20 and a conversation of \d+ tokens"):
        packing.packed(given, tiny.llama(), length=20)


def test_the_numbers_of_a_data_set_before_it_is_learned():
    turns = (Turn("system", "x"), *TALKS[0].turns, *TALKS[1].turns)
    data = [*TALKS, TALKS[3], Conversation(turns, "row 99"), talk("a" * 300, "b")]
    table = statistics.table(data, tiny.tokenizer(), length=60)
    rows = [answer_rows.encode(each.turns, tiny.tokenizer()) for each in data]
    assert table.loc["tokens", "mean"] == pytest.approx(sum(len(ids) for ids, *_ in rows) / len(rows))
    assert table.loc["tokens", "most"] == max(len(ids) for ids, *_ in rows)
    assert table.loc["turns", ["least", "most"]].tolist() == [2, 5]
    assert table.loc["tokens of answers", "least"] == min(int((labels != IGNORED).sum()) for _, labels, _ in rows)
    kept = answer_rows.rows(data, tiny.tokenizer(), length=60)
    found = table.attrs
    assert (found["cut"], found["dropped"]) == (kept.counts["cut"], kept.counts["dropped"]) and found["dropped"] == 1
    assert (found["conversations"], found["repeated"], found["several turns"], found["system"]) == (15, 1, 1, 1)


def test_conversations_that_hold_a_sample_of_a_task_are_left_out(capsys):
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    samples = [
        Sample("a", "a", (Generation(f"Q: {words} fifteen?", (), 4),), ""),
        Sample("b", "b", (Generation("is nine more than eight or is it less", (), 4),), ""),
        Sample("c", "c", (Generation("too short to tell", (), 4),), ""),
    ]
    task = Task("numbers", samples, ("exact",), {}, {}, {}, None)
    data = [
        talk(f"{words.upper()}, fifteen", "yes"), talk("no", words),
        talk("Is nine more than eight, or is it less?", "no"),
        talk("too short to tell", "no"), Conversation((Turn("user", "x"),), "row", chosen=words, rejected="y"),
        talk(words.replace("seven", "7"), "x"),
    ]  # fmt: skip
    assert overlap.without(data, [task]) == [data[3], data[5]]
    assert (
        "4 of 6 conversations share 13 words in a row with one of 3 samples, 4 with numbers" in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="all 1 conversations hold samples"):
        overlap.without(data[:1], [task])
    texts = [overlap.text(each) for each in data]
    by_sample = guards.contamination({"a": samples[0].requests[0].prompt}, texts)
    assert set(by_sample.found) == {"a"} and set(guards.contaminated({"a": words}, texts)) == {0, 1, 4}
    with pytest.raises(ValueError, match="words=7"):
        guards.contaminated({"a": words}, texts, words=7)


def test_rows_of_a_folder_of_thimble_data_and_of_the_hub(tmp_path, monkeypatch, capsys):
    row = '{"prompt": "Why?", "completion": "So."}\n'
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "a.jsonl").write_text(row * 3)
    (tmp_path / "mine" / "deep" / "b.jsonl").write_text(row)
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    assert [each.where[-14:] for each in conversations.read("mine", count=2)] == ["a.jsonl line 1", "a.jsonl line 2"]
    assert len(conversations.read("mine")) == 4 and len(conversations.read("mine/a.jsonl")) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no \.jsonl"):
        conversations.read("empty")
    monkeypatch.setattr(hub, "revision", lambda name: "c0ffee" * 7 if name == "some/talks" else None)
    there = [{"prompt": "Why?", "completion": "So."}] * 5
    monkeypatch.setattr(hub_head, "rows", lambda *asked: (iter(there), f"train of {asked[1]}"))
    found = conversations.read("some/talks:en", count=3)
    assert len(found) == 3 and found[0].where == "some/talks:en train of en row 1"
    assert "Hub some/talks:en train of en at c0ffeec0ffee, the first 3 rows" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"'no/such' is no file, and the .* did not give it"):
        conversations.read("no/such")
    with pytest.raises(ValueError, match="rows has no rows of conversations; 1 were left out, the first: rows"):
        conversations.read([{"prompt": "a", "completion": ""}], name="rows", broken="skip")


def test_packaged_conversations_and_the_splits_of_a_file():
    found = {split: conversations.read("packaged", split=split) for split in ("train", "valid", "test")}
    assert len(found["train"]) > 80 and len(found["test"]) > 10 and conversations.read("packaged") == found["train"]
    answers = {split: {each.turns[1].text for each in rows} for split, rows in found.items()}
    assert not answers["train"] & answers["test"] and not answers["valid"] & answers["test"]
    assert all("::=" not in text and len(text) > 50 for text in answers["train"])
    rows = [{"prompt": f"Why {place}?", "completion": "So."} for place in range(20)]
    parts = [conversations.read(rows, split=split) for split in ("train", "valid", "test")]
    assert [len(each) for each in parts] == [16, 2, 2] and [*parts[0], *parts[1], *parts[2]] == conversations.read(rows)
    with pytest.raises(ValueError, match="split='testing' is unknown"):
        conversations.read("packaged", split="testing")
    assert not conversation_rows.is_split(rows)
