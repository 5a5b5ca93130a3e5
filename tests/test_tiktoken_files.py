"""A file of tiktoken's, read here and by tiktoken itself: the same ids for every text."""

import base64

import hypothesis
import pytest
from hypothesis import strategies

from lib.sources import builtin_text
from lib.tokenizers import tiktoken_files
from lib.trainers import byte_pairs

tiktoken = pytest.importorskip("tiktoken")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(tiktoken's own encoding, ours) of a file that holds the merges of a small tokenizer"""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    made = byte_pairs.train(builtin_text.documents("train")[0][:3], vocabulary=600)
    back = {sign: byte for byte, sign in bytes_to_unicode().items()}
    entries = sorted((id, entry) for entry, id in made.get_vocab().items() if entry != byte_pairs.END)
    ranks = {bytes(back[sign] for sign in entry): rank for rank, (_, entry) in enumerate(entries)}
    path = tmp_path_factory.mktemp("é files") / "cl100k_base.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()))
    pattern = tiktoken_files.PATTERNS["cl100k_base"]
    end = {tiktoken_files.END: len(ranks)}
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=end), path


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    text=strategies.text(strategies.characters(codec="utf-8"))
    | strategies.sampled_from(["It's 12345 d'or\r\n\n  x", "中文 \U0001f600"])
)
def test_every_text_gets_the_ids_of_tiktoken(both, text):
    own, path = both
    made = MADE.setdefault(path, tiktoken_files.load(path)) if path not in MADE else MADE[path]
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert ids == own.encode(text, disallowed_special=()) and made.decode(ids) == text
    assert made.eos_token_id == own.eot_token == len(made) - 1


MADE = {}


def test_other_files_are_named(both, tmp_path):
    content = both[1].read_bytes()
    for name, changed, said in (
        ("cl100k_base.tiktoken", content[:-9] + b"!", "is no token"),
        ("cl100k_base.tiktoken", content.partition(b"\n")[2], "255 of the 256 bytes"),
        ("mine.tiktoken", content, "says no pattern by its name"),
    ):
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(ValueError, match=said):
            tiktoken_files.load(tmp_path / name)
    assert tiktoken_files.load(tmp_path / "mine.tiktoken", pattern="gpt2")("a b")["input_ids"]
    with pytest.raises(FileNotFoundError, match="look where it lies"):
        tiktoken_files.load(tmp_path / "none.tiktoken", pattern="gpt2")
