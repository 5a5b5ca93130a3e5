"""Pairs by name: those of this project, files, the data folder's; what is no pair is refused."""

import json

import pytest

from lib.sources import builtin_preferences, preference_data
from lib.sources.conversations import Turn


def test_the_projects_own_pairs():
    found = preference_data.load("packaged")
    assert len(found) == len(builtin_preferences.PAIRS) == 24
    assert found[0].turns == (Turn("user", "Which is the longest river of Africa?"),)
    assert all(len(each.chosen) < len(each.rejected) or len(each.chosen) < 40 for each in found)


def test_files_and_the_data_folder(tmp_path, monkeypatch):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    path = tmp_path / "my pairs é.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert preference_data.load(str(path))[0].rejected == "c"
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"under \$THIMBLE_DATA, which is not set.*packaged"):
        preference_data.load("hh_harmless")
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    (tmp_path / "preference").mkdir()
    (tmp_path / preference_data.FILES["dpo_en"]).write_text(path.read_text())
    assert len(preference_data.load("dpo_en")) == 1
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(ValueError, match=r"line 1 has no pair of answers"):
        preference_data.load(str(path))
    with pytest.raises(ValueError, match=r"pairs 'packagd' are unknown; .*'packaged'"):
        preference_data.load("packagd")
    monkeypatch.setattr("lib.sources.hub._rows", lambda *_: (rows, "Hub here"))
    assert len(preference_data.load("owner/name")) == 1
