"""WikiText-2, C4 and Alpaca from the Hugging Face Hub, for when no local copy is at hand."""

import itertools

from lib.sources import file_formats, readers

_C4_ROWS = {"train": ("train", 0, 2000), "valid": ("validation", 0, 500), "test": ("validation", 500, 1000)}


def load(name: str, split: str) -> tuple[list[str], str]:
    """The documents of one of `TEXTS`, and their origin; `ConnectionError` says why they could not be had."""
    from huggingface_hub.errors import HTTPError  # 0.1 s, only where the Hub is asked

    try:
        return TEXTS[name](split)
    except (OSError, HTTPError, ImportError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(reason) from error


def wikitext2(split: str) -> tuple[list[str], str]:
    """One document, the word-tokenised WikiText-2 file of a split as it was published, and its origin."""
    part = "validation" if split == "valid" else split
    rows, origin = _rows("Salesforce/wikitext", "wikitext-2-v1", part)
    return [join_lines(row["text"] for row in rows)], origin


def c4(split: str) -> tuple[list[str], str]:
    """Web pages of C4 (en), streamed from the start: 2000 of train, or 500 of validation for valid and test each."""
    part, first, last = _C4_ROWS[split]
    rows, origin = _rows("allenai/c4", "en", part, streaming=True)
    return [row["text"] for row in itertools.islice(rows, first, last)], f"{origin}, rows {first} to {last - 1}"


def alpaca(split: str) -> tuple[list[str], str]:
    """Instructions with their answers (English, 52,002; CC BY-NC 4.0), cut 80/10/10 in order."""
    rows, origin = _rows("tatsu-lab/alpaca", "default", "train")
    documents = [file_formats.instruction(row) for row in rows]
    return readers.part(documents, split), f"{origin}, as {split} (cut 80/10/10 in order)"


def rows(name: str, split: str = "train") -> list[dict]:
    """All rows of a data set's default configuration; `ConnectionError` says why they could not be had."""
    from huggingface_hub.errors import HTTPError  # 0.1 s, only where the Hub is asked

    try:
        found, origin = _rows(name, None, split)
    except (OSError, HTTPError, ImportError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(reason) from error
    print(f"{len(found)} rows of {origin}")
    return list(found)


def join_lines(rows) -> str:
    """The file that the Hub's rows were made of: a row per line, where a blank line had become an empty row."""
    return "".join(row or " \n" for row in rows)


def revision(name: str) -> str | None:
    """The commit of a data set that the Hub holds now; None where the Hub cannot be asked."""
    from huggingface_hub import HfApi  # 0.1 s, only where the Hub is asked
    from huggingface_hub.errors import HTTPError  # 0.1 s, only where the Hub is asked

    try:
        return HfApi().dataset_info(name, timeout=10).sha
    except (OSError, HTTPError):
        return None


def _rows(name, config, split, streaming=False):
    from datasets import load_dataset  # loads slowly, only where the Hub is asked

    commit = revision(name)
    if streaming and commit is None:  # a stream has no local cache to fall back on
        raise ConnectionError(f"{name} cannot be reached")
    rows = load_dataset(name, config, split=split, revision=commit, streaming=streaming)
    return rows, f"Hub {name} {config} {split} at {commit[:12] if commit else 'an unknown commit (its local cache)'}"


TEXTS = {"wikitext2": wikitext2, "c4": c4, "alpaca": alpaca}
