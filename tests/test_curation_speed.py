"""Speeds beside another project's filters: in turns, on the same documents, with what both decide."""

import itertools

import pytest

from lib import timing
from lib.curation.document import Document
from lib.peers import curation_speed

PROSE = "The people of the town have been with us, and that is a fact to be proud of. " * 6


def test_rounds_alternate_and_decisions_are_compared(monkeypatch, tmp_path, capsys):
    documents = [Document(PROSE, "good"), Document("too short", "short"), Document(PROSE + "#" * 90, "hashes")]
    clock, order = itertools.count(), []
    monkeypatch.setattr(timing, "worked", lambda: float(next(clock)))

    def other(given):
        order.append("other")
        return [True, False, True]

    def mine(given):
        order.append("mine")
        return curation_speed.ours("gopher")(given)

    found = curation_speed.compare(documents, {"ours": mine, "other": other}, 3)
    assert order == ["mine", "other"] * 4 and found["rates"] == {"ours": [3.0] * 3, "other": [3.0] * 3}
    assert found["kept"] == {"ours": 1, "other": 2} and found["alike"] == pytest.approx(2 / 3)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(document.line() + "\n" for document in documents))
    monkeypatch.setattr(curation_speed, "theirs", lambda name: other)
    kept = curation_speed.main([str(path), "--stages", "gopher", "--rounds", "2", "--file", str(tmp_path / "out.json")])
    assert list(kept) == ["gopher"] and "1.0 times; alike 0.667" in capsys.readouterr().out
    assert (tmp_path / "out.json").is_file()
