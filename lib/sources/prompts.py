"""Prompts by kind of task, from data sets under `$THIMBLE_DATA` or written for this project, and their tokens."""

import hashlib
import random
from typing import NamedTuple

import torch

from lib import files, tokenization
from lib.files import data, place
from lib.sources import file_formats, note
from lib.sources.builtin_prompts import PROMPTS


class Kind(NamedTuple):
    """A kind of task: its file under `$THIMBLE_DATA`, what is asked, and the field that may be long."""

    file: str
    template: str
    long: str


KINDS = {
    "summarization": Kind(
        "longbench/multi_news.jsonl", "{context}\n\nSummarize the news above in a few sentences.", "context"
    ),
    "question answering": Kind(
        "boolq/val.jsonl",
        "{passage}\n\nQuestion: {question}? Quote the sentence of the text that decides it, then answer yes or no.",
        "passage",
    ),
    "code": Kind(
        "humaneval/HumanEval.jsonl",
        "Write this Python code in full, with type hints and comments:\n\n{prompt}",
        "prompt",
    ),
    "chat": Kind("alpaca/alpaca_4000.jsonl", "{instruction}\n{input}", "input"),
    "guard": Kind(
        "toxicchat/test.jsonl",
        "Message: {user_input}\n\nIs this message safe or unsafe? Answer with that word and one sentence of reasons.",
        "user_input",
    ),
}


def load(kind: str, count: int, *, source: str = "packaged", characters: int = 4000, seed: int = 0) -> list[str]:
    """`count` prompts of a kind, a draw in the order of `seed`, printed and noted.

    source: "packaged" (a few, written for this project) or "data" (the data set under `$THIMBLE_DATA`). characters: at
    most so many are kept of the field that may be long. Raises ValueError for unknown kinds and for more prompts than
    there are, FileNotFoundError without the data set.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; {files.choices(kind, KINDS)}")
    if source not in ("packaged", "data"):
        raise ValueError(f"source={source!r} is unknown; {files.choices(source, ('packaged', 'data'))}")
    rows, origin = (PROMPTS[kind], "written for this project") if source == "packaged" else _rows(KINDS[kind].file)
    if not 1 <= count <= len(rows):
        raise ValueError(f"{count} prompts of {kind} were asked, {origin} has {len(rows)}; ask for 1 to that many.")
    _, template, long = KINDS[kind]
    chosen = random.Random(seed).sample(rows, count)
    prompts = [template.format(**{**row, long: row[long][:characters]}).strip() for row in chosen]
    sha256 = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    note(kind="prompts", name=kind, origin=origin, sha256=sha256)
    print(f"prompts {kind}: {origin}; {count} of {len(rows)}, sha256 {sha256[:8]}")
    return prompts


def tokens(prompts: list[str], tokenizer) -> list[torch.Tensor]:
    """Token ids [length] of each prompt as a user's message in the tokenizer's chat template, as text without one.

    A first token that the template writes is not written again.
    """
    texts = prompts
    if tokenizer.chat_template:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        options = {"add_generation_prompt": True, "tokenize": False}
        texts = [tokenizer.apply_chat_template(chat, **options) for chat in chats]
    return [torch.tensor(found) for found in tokenization.ids(tokenizer, texts)]


def _rows(name: str) -> tuple[list[dict], str]:
    folder = data()
    if folder is None or not (folder / name).is_file():
        where = "THIMBLE_DATA is not set" if folder is None else f"not in THIMBLE_DATA={folder}"
        raise FileNotFoundError(f"{name}: {where}; set it to a folder with this file, or use source='packaged'.")
    path = folder / name
    return [row for _, row in file_formats.objects(path)], place(path)
