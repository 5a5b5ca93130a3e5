"""Published results: read as they were printed, written into the README, and no number beside them."""

import json
import math
import shutil

import pytest

from lib import files, published

NAMES = (
    "architectures",
    "artifacts",
    "cache",
    "evaluation",
    "gemma",
    "healing",
    "methods",
    "packed",
    "peers",
    "pruning",
    "server",
    "tokenizer",
)
FOLDER = files.ROOT / "notebooks"
README = (files.ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_whole(name):
    found = published.load(name)
    assert (files.ROOT / "notebooks" / f"{found.notebook}.ipynb").is_file()
    assert not found.batch or (files.ROOT / "notebooks" / "batches" / found.batch).is_file()
    for key, table in found.tables.items():
        assert all(len(row) == len(table["columns"]) for row in table["rows"]) and len(found.table(key))
        values, errors = found.numbers(key)
        assert values.notna().any(axis=None) and (errors.fillna(1) > 0).all(axis=None)


@pytest.mark.parametrize(
    "text, value, error",
    [
        ("27.4 ± 1.0", 27.4, 1.0),
        ("1,222 ± 97", 1222, 97),
        ("0.126 ± 0.003 (0.001)", 0.126, 0.003),
        ("-0.044 ± 0.014", -0.044, 0.014),
        ("9", 9, math.nan),
        ("> 10⁷", math.nan, math.nan),
        ("", math.nan, math.nan),
    ],
)
def test_numbers_are_read_as_printed(text, value, error):
    assert published.number(text) == pytest.approx((value, error), nan_ok=True)


def test_names_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"results 'peer' are unknown; .* did you mean 'peers'"):
        published.load("peer")
    with pytest.raises(ValueError, match="table '5 bits' of peers is unknown"):
        published.load("peers").table("5 bits")
    with pytest.raises(ValueError, match=r"'the recipes' is not in peers / 2 bits; .* did you mean 'the recipe'"):
        published.load("peers").cell("2 bits", "the recipes", "perplexity")


def test_the_readme_has_what_the_records_have():
    assert published.write_marks(README) == README and "<!-- peers / " in README


def test_a_changed_record_changes_the_page(tmp_path):
    base = tmp_path / "published"
    shutil.copytree(published.folder(), base)
    record = json.loads((base / "peers.json").read_text())
    record["tables"]["2 bits"]["rows"][0][2] = "12.3 ± 4.5"
    (base / "peers.json").write_text(json.dumps(record))
    mark = "<!-- peers / 2 bits / the recipe / KL, WikiText-2 -->"
    assert f"{mark}12.3 ± 4.5<!-- -->" in published.write_marks(README, base) != README


def test_no_measured_number_is_typed_into_the_readme():
    assert published.unmarked(README) == []


@pytest.mark.parametrize(
    "line", ["It runs at 463.6 ± 9.5.", "It makes 300 tokens/s.", "a perplexity of 27.4", "0.1 nats"]
)
def test_a_typed_number_is_found(line):
    assert published.unmarked(README + line)


@pytest.mark.parametrize(
    "path", [*FOLDER.glob("12_*.ipynb"), *sorted(FOLDER.glob("7*.ipynb"))], ids=lambda path: path.stem
)
def test_prose_of_the_results_types_no_number(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
    assert published.unmarked("\n".join("".join(cell["source"]) for cell in cells)) == []


def test_the_readme_is_one_page():
    assert len(README.encode()) <= 8192
    books = {path.name for path in (files.ROOT / "notebooks").glob("*.ipynb")}
    assert books == {name for name in books if f"(notebooks/{name})" in README}
