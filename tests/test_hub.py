"""WikiText-2 and C4 from the Hub, which a stand-in serves here: no network is needed."""

import pytest

from lib.sources import hub, texts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def served(monkeypatch):
    """Stands in for the Hub: returns the rows that tests put in, and keeps what was asked."""
    served = {"asked": [], "rows": []}

    def load_dataset(name, config, **options):
        served["asked"].append((name, config, options))
        if isinstance(served["rows"], Exception):
            raise served["rows"]
        return iter(served["rows"])

    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(hub, "revision", lambda name: "0123456789abcdef")
    return served


def test_wikitext_from_the_hub(served):
    served["rows"] = [{"text": row} for row in ("", " = Title = \n", "", " Words . \n")]
    loaded = texts.load("wikitext2", "valid")
    assert loaded.documents == [" \n = Title = \n \n Words . \n"]
    assert loaded.origin == "Hub Salesforce/wikitext wikitext-2-v1 validation at 0123456789ab"
    options = {"split": "validation", "revision": "0123456789abcdef", "streaming": False}
    assert served["asked"] == [("Salesforce/wikitext", "wikitext-2-v1", options)]


def test_c4_from_the_hub_is_streamed_and_its_splits_differ(served):
    served["rows"] = [{"text": str(number)} for number in range(2500)]
    assert texts.load("c4", "valid").documents == [str(number) for number in range(500)]
    assert texts.load("c4", "test").documents == [str(number) for number in range(500, 1000)]
    assert len(texts.load("c4", "train").documents) == 2000
    assert [options["split"] for *_, options in served["asked"]] == ["validation", "validation", "train"]
    assert all(options["streaming"] for *_, options in served["asked"])


def test_hub_without_network_says_what_to_set(served):
    served["rows"] = ConnectionError("no route")
    with pytest.raises(FileNotFoundError, match=r"THIMBLE_DATA is not set.*\(no route\); set THIMBLE_DATA"):
        texts.load("wikitext2")


def test_stream_without_network_fails_at_once(served, monkeypatch):
    monkeypatch.setattr(hub, "revision", lambda name: None)
    with pytest.raises(FileNotFoundError, match="allenai/c4 cannot be reached"):
        texts.load("c4")
    assert not served["asked"]
    served["rows"] = [{"text": "words"}]
    assert texts.load("wikitext2").origin.endswith("test at an unknown commit (its local cache)")


def test_local_folder_without_the_text_falls_back_to_the_hub(served, folder):
    served["rows"] = [{"text": "words"}]
    assert texts.load("wikitext2").origin.startswith("Hub ")


def test_revision_unknown_without_network(monkeypatch):
    def dataset_info(self, name, timeout):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    assert hub.revision("Salesforce/wikitext") is None
