"""Tokenizers of OpenAI's tiktoken, from files that are at hand: byte-level byte-pair encoding with ranks for merges.

    tokenizer = tiktoken_files.load("cl100k_base.tiktoken")

A file has a line for each token: its bytes in base64, a space, its rank. The pattern that splits a text first is no
part of the file; `PATTERNS` has those that tiktoken names. Read by transformers' converter, so that what comes out is
compared, counted and trimmed as any other tokenizer.
"""

import base64
import binascii
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from lib import files
from lib.files import place

END = "<|endoftext|>"
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": _GPT2, "r50k_base": _GPT2, "p50k_base": _GPT2, "cl100k_base": _CL100K}


def load(path: Path | str, *, pattern: str | None = None, special: tuple[str, ...] = (END,)) -> PreTrainedTokenizerFast:
    """The tokenizer of a `.tiktoken` file. pattern: a name of `PATTERNS` or an expression; None: by the file's name.

    special: tokens that no text is split into, behind all others. Raises ValueError for a file of another kind, one
    without all bytes, and a name that says no pattern; FileNotFoundError where there is none.
    """
    path = Path(path).expanduser()
    name = path.name.partition(".")[0] if pattern is None else pattern
    if pattern is None and name not in PATTERNS:
        raise ValueError(
            f"{place(path)} says no pattern by its name; {files.choices(name, PATTERNS)} Or give pattern=."
        )
    _check(path)
    core = TikTokenConverter(
        str(path), pattern=PATTERNS.get(name, name), extra_special_tokens=list(special)
    ).converted()
    end = special[0] if special else None
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=end, eos_token=end, pad_token=end)


def _check(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{place(path)} is no file; a .tiktoken file is one; look where it lies.")
    single = set()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            token, _ = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{place(path)} line {number} is no token; bytes in base64, a space and a rank are; copy it again."
            ) from None
        if len(token) == 1:
            single.add(token)
    if len(single) < 256:
        raise ValueError(f"{place(path)} has {len(single)} of the 256 bytes; all are needed; copy it again.")
