"""The README's table of families is what the tests of families hold, and names only what is tried."""

from lib import files, published
from lib.quantizers import METHODS
from tests import supported
from tests.families import FAMILIES


def test_the_readme_shows_what_the_tests_hold():
    text = (files.ROOT / "README.md").read_text(encoding="utf-8")
    assert text == published.replaced(text, "families", supported.table(), "README.md"), "run `make readme`"


def test_refusals_are_of_what_is_tried():
    shown = {operation for operations in supported.COLUMNS.values() for operation in operations}
    assert supported.REFUSED.keys() <= shown and METHODS.keys() <= shown
    assert all(refused.keys() <= FAMILIES.keys() for refused in supported.REFUSED.values())


def test_a_cell_says_which_variants_are_refused(monkeypatch):
    monkeypatch.setattr(supported, "REFUSED", {"engine": {"mistral_windows": "", "olmo2": ""}})
    head, _, alike, mistral, olmo = supported.table().splitlines()
    *same, engine = head.strip("| ").split(" | ")
    assert engine == "packed engine, packed folder" and len(same) == 1 and "quantize, prune" in same[0]
    assert alike.startswith("| Llama, Qwen2, ") and alike.endswith("| yes | yes |")
    assert mistral == "| Mistral | yes | not windows |" and olmo == "| OLMo 2 | yes | no |"
