"""Rows of every format become one form; real files; rows that are no conversation are named."""

import json
import os
from pathlib import Path

import pytest

from lib.sources import conversations
from lib.sources.conversations import Turn

ASKED, ANSWERED = Turn("user", "Why?"), Turn("assistant", "So.")
BOTH, SYSTEM = (ASKED, ANSWERED), Turn("system", "Be kind.")
DIALOGUE = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Really?\n\nAssistant: "
OPENAI = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]

ROWS = {
    "alpaca": ({"instruction": "Why?", "input": "", "output": "So."}, BOTH),
    "alpaca with input": (
        {"instruction": "Sum up.", "input": "A text.", "output": "So.", "system": "Be kind.", "history": [["a", "b"]]},
        (SYSTEM, Turn("user", "a"), Turn("assistant", "b"), Turn("user", "Sum up.\n\nA text."), ANSWERED),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}], "system": "Be kind."},
        (SYSTEM, *BOTH),
    ),
    "openai": ({"messages": OPENAI, "tools": None}, BOTH),
    "prompt and completion": ({"prompt": "Why?", "completion": "So."}, BOTH),
    "turns and completion": ({"prompt": OPENAI[:1], "completion": OPENAI[1:]}, BOTH),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_format_becomes_turns(name):
    row, turns = ROWS[name]
    assert conversations.conversation(row).turns == turns


PAIRS = {
    "texts": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "turns": {"prompt": OPENAI[:1], "chosen": OPENAI[1:], "rejected": [{"role": "assistant", "content": "No."}]},
    "whole": {"chosen": OPENAI, "rejected": [OPENAI[0], {"role": "assistant", "content": "No."}]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "dialogue": {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
}


@pytest.mark.parametrize("name", PAIRS)
def test_each_form_of_a_preference(name):
    found = conversations.conversation(PAIRS[name])
    assert (found.turns, found.chosen, found.rejected) == ((ASKED,), "So.", "No.")


def test_a_single_label_and_a_longer_dialogue():
    found = conversations.conversation({"prompt": "Why?", "completion": "So.", "label": False})
    assert (found.turns, found.desirable) == (BOTH, False)
    found = conversations.conversation({"chosen": DIALOGUE + "Yes.", "rejected": DIALOGUE + "No."})
    assert found.turns == (*BOTH, Turn("user", "Really?")) and (found.chosen, found.rejected) == ("Yes.", "No.")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Why?", "output": "So."}, r"keys \['output', 'question'\].* nearest is alpaca"),
        ({"messages": OPENAI[::-1]}, "turns of assistant, user; user and assistant must take turns"),
        ({"messages": OPENAI[:1]}, "up to one of the assistant"),
        ({"messages": [OPENAI[0], OPENAI[0], OPENAI[1]]}, "turns of user, user, assistant"),
        ({"messages": []}, "turns of nobody"),
        ({"messages": [OPENAI[0], {"role": "tool", "content": "4"}]}, "'tool' with tools"),
        ({"messages": [OPENAI[0], {"role": "assistant", "content": None, "tool_calls": [1]}]}, "with tools"),
        ({"messages": OPENAI, "tools": [{"function": {"name": "weather"}}]}, r"has tools \(weather\)"),
        ({"conversations": [], "tools": '[{"name": "search"}]'}, r"has tools \(search\)"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "role 'owner'"),
        ({"messages": [OPENAI[0], {"role": "assistant", "content": " \n"}]}, "empty turn of the assistant"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "prefers an answer to itself"),
        ({"chosen": OPENAI, "rejected": [{"role": "user", "content": "Who?"}, OPENAI[1]]}, "different questions"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "label='yes'; true"),
        ({"prompt": "a\ud83d", "completion": "b"}, "half a character"),
    ],
)
def test_what_is_no_conversation_is_named(row, said):
    with pytest.raises(ValueError, match=f"(?s)line 3.*{said}"):
        conversations.conversation(row, "x.jsonl line 3")


def test_files_and_rows_with_broken_ones_refused_or_left_out(tmp_path, capsys):
    good, bad = ROWS["alpaca"][0], {"instruction": "Why?", "output": ""}
    path = tmp_path / "my data é.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad, good)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"my data é\.jsonl line 2 has an empty turn"):
        conversations.read(path)
    assert [each.where[-6:] for each in conversations.read(path, broken="skip")] == ["line 1", "line 3"]
    assert "2 rows" in (said := capsys.readouterr().out) and "1 left out, the first: " in said
    (tmp_path / "all.json").write_text(json.dumps([good]), encoding="utf-8")
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [good | {"messages": None}, dict.fromkeys(good) | {"messages": OPENAI}]
    )
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "t.parquet")
    assert len(conversations.read(tmp_path / "t.parquet")) == 2  # columns of the other format are None
    assert conversations.read([good], name="mine")[0].where == "mine row 1"
    assert conversations.read(tmp_path / "all.json")[0].turns == BOTH
    for wrong, error, said in (
        (tmp_path / "no.jsonl", FileNotFoundError, "is not there"),
        ([], ValueError, "has no rows"),
        (["text"], ValueError, "row 1 is a str"),
    ):
        with pytest.raises(error, match=said):
            conversations.read(wrong)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"ends in '\.csv'"):
        conversations.read(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="broken='drop'"):
        conversations.read(path, broken="drop")


DATA = Path(os.environ.get("THIMBLE_DATA", "/nowhere"))
FILES = {
    "alpaca/alpaca_4000.jsonl": (3998, False),
    "preference/dpo_en_300.jsonl": (300, True),
    "preference/hh_harmless_base_test.jsonl": (1394, True),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.skipif(not DATA.is_dir(), reason="THIMBLE_DATA names no folder of data sets")
def test_real_files(name):
    count, pairs = FILES[name]
    found = conversations.read(DATA / name, broken="skip")
    assert len(found) == count and all((each.chosen is not None) == pairs for each in found)
