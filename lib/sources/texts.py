"""Texts by name or path, cut into windows of tokens for calibration and for measuring.

A text is tokenised whole, without special tokens, and cut into pieces that do not overlap, from its start. A window is
what the tokenizer puts before a text (nothing for many, `<bos>` for Gemma, another model without it) and a piece.

Documents of large files stay there (`streams`), and their tokens are in a file of their own (`token_file`): the
windows are the same, and the memory that they take is that of the windows in use.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import files, tokenization
from lib.files import data, place
from lib.sources import builtin_text, hub, hub_head, note, readers, token_windows
from lib.sources.streams import Documents

LENGTH = 512  # tokens of a window where nothing else is said
_FILES = {"c4": "c4/c4_demo_300.jsonl", "alpaca": "alpaca/alpaca_4000.jsonl"}  # beside other text in their folders
_UNSPLIT = ("redpajama_sample",)  # folders whose files are sources, not splits
_MORE_C4 = ("redpajama_sample/c4-rp1.jsonl", "redpajama_sample/c4-rp2.jsonl")  # for training, where they are there


@dataclass(frozen=True)
class Text:
    """Documents of one split, with the `sha256` of the joined text and their origin.

    documents: a list, or `Documents` that stay in files and are read anew each time somebody goes through them.
    """

    name: str
    split: str
    documents: list[str] | Documents
    sha256: str = ""
    origin: str = "given"

    def __post_init__(self):
        """Without a hash, compute it; raises ValueError for half a character (a lone surrogate)."""
        if self.streamed:
            object.__setattr__(self, "sha256", self.sha256 or self.documents.scan().sha256)
        for number, document in enumerate(self.documents) if not self.sha256 else ():
            tokenization.check(document, f"document {number} of {self.name!r}")
        object.__setattr__(self, "sha256", self.sha256 or hashlib.sha256(self.text.encode()).hexdigest())

    @property
    def text(self) -> str:
        """All documents, a blank line between them."""
        return "\n\n".join(self.documents)

    @property
    def streamed(self) -> bool:
        """Whether the documents stay in their files."""
        return isinstance(self.documents, Documents)

    @property
    def characters(self) -> int:
        """The characters of all documents."""
        return self.documents.scan().characters if self.streamed else sum(map(len, self.documents))

    def pieces(self) -> Iterator[str]:
        """`text` in pieces, of which only one is in memory at a time where the documents are streamed."""
        return self.documents.pieces() if self.streamed else iter([self.text])

    def windows(
        self, count: int, length: int = LENGTH, *, seed: int | None = None, bos: bool | None = None
    ) -> "Windows":
        """`count` windows of `length` tokens that do not overlap: the first ones, or a draw in the order of `seed`.

        Each begins with what the model's tokenizer puts before a text, which counts among its tokens. bos: False for
        windows of text alone, True for BOS where the tokenizer puts none.
        """
        if count < 1 or length < 2:
            raise ValueError(f"windows({count}, {length}) were asked; allowed are 1 or more, of 2 tokens or more.")
        return Windows(self, count, length, seed, bos)


@dataclass(frozen=True)
class Windows:
    """Windows of a text, tokenized for a given model by `tokens`."""

    text: Text
    count: int
    length: int
    seed: int | None = None
    bos: bool | None = None


def load(
    name: str = "packaged",
    split: str = "test",
    *,
    in_memory: int = readers.IN_MEMORY,
    characters: int = hub_head.CHARACTERS,
) -> Text:
    """Load a split ("train", "valid" or "test") of a text.

    `name` is "packaged" (CPython's language reference), "wikitext2", "c4", "alpaca", or a file or folder with `.txt`,
    `.jsonl` or `.parquet`, absolute or inside `$THIMBLE_DATA`; `readers.documents` says how splits are found. The
    three named ones come from `$THIMBLE_DATA` where it has them, else from the Hub. "OWNER/NAME" is any data set of the
    Hub, of which the first `characters` are streamed once into a file (`hub_head`). What was used is printed and noted.
    in_memory: bytes of files up to which documents are held in memory; larger ones are streamed, with equal windows.

    Raises `FileNotFoundError` for unknown names, `ValueError` for text that is empty or cannot be read.
    """
    if split not in readers.SPLITS:
        raise ValueError(f"split={split!r} is unknown; {files.choices(split, readers.SPLITS)}")
    documents, origin = _documents(str(name), split, in_memory, characters)
    if not (len(documents) if isinstance(documents, Documents) else any(document.strip() for document in documents)):
        raise ValueError(f"{origin} is empty or blank; a text needs words; choose another file or split.")
    text = Text(str(name), split, documents, origin=origin)
    note(kind="text", name=text.name, split=split, origin=origin, sha256=text.sha256)
    count = f"{len(documents)} document{'s' if len(documents) > 1 else ''}{', streamed' if text.streamed else ''}"
    print(f"text {name}/{split}: {origin}; {count}, {text.characters:,} characters, sha256 {text.sha256[:8]}")
    return text


def tokens(x, model, *, count: int | None = None, length: int | None = None, bos: bool | None = None) -> torch.Tensor:
    """Token ids, LongTensor [count, length] on the CPU, of windows, of a text, or of ids that are given already.

    A `Text` yields all its windows of `length` (default 512). `Windows` and tensors [count, length] bring their own
    length. Everywhere `count` is an upper bound. The tokenizer is `model.tokenizer`, else that of its folder. What it
    puts before a text stands before each window of text, is printed and noted; `bos` overrules it, as for
    `Text.windows`. Ids that are given stay what they are.
    """
    found = rows(x, model, count=count, length=length, bos=bos)
    return found if isinstance(found, torch.Tensor) else found.tensor()


def rows(
    x, model, *, count: int | None = None, length: int | None = None, bos: bool | None = None
) -> torch.Tensor | token_windows.Rows:
    """What `tokens` returns, but windows of a streamed text stay in its token file, as `token_windows.Rows`.

    Arguments and errors are those of `tokens`; a window in a file is looked at when it is read.
    """
    if isinstance(x, torch.Tensor):
        found = token_windows.known(_given(x), model.get_input_embeddings().num_embeddings)
    elif isinstance(x, token_windows.Rows):
        found = x
    elif isinstance(x, Windows):
        found = token_windows.cut(x.text, model, x.count, x.length, x.seed, x.bos if bos is None else bos)
    elif isinstance(x, Text):
        found = token_windows.cut(x, model, None, length or LENGTH, None, bos, most=count)
    else:
        raise TypeError(f"tokens of a {type(x).__name__} were asked; give a Text, Windows, or a tensor of token ids.")
    return found[:count]


def tokenizer_hash(model) -> str:
    """Hexadecimal SHA-256 of the rules of the model's tokenizer: two with the same cut every text alike."""
    return tokenization.identity(token_windows.tokenizer_of(model))


def _documents(name, split, in_memory, characters):
    if name == "packaged":
        return builtin_text.documents(split)
    path = _local(name)
    if path is not None and name in _UNSPLIT and path.is_dir():
        return readers.every(path, split, in_memory)
    if path is not None:
        documents, origin = readers.documents(path, split, in_memory)
        return _with_more(documents, origin) if name == "c4" and split == "train" else (documents, origin)
    if name not in hub.TEXTS and not hub_head.is_name(name):
        raise FileNotFoundError(
            f"text {name!r} is neither known nor a file{_looked()}; {files.choices(name, _names())} "
            "Or give the path of a .txt, .jsonl or .parquet file, or of a folder of these."
        )
    try:
        if name in hub.TEXTS:
            return hub.load(name, split)
        path, origin = hub_head.fetch(name, split, characters)
        return readers.read(path, in_memory)[0], origin
    except ConnectionError as error:
        raise FileNotFoundError(
            f"text {name!r} is not there{_looked()}, and the Hugging Face Hub did not give it ({error}); set "
            f"THIMBLE_DATA to a folder with {_FILES.get(name, f'{name}/{split}.txt')}, "
            "connect to the network, or use 'packaged'."
        ) from error


def _with_more(documents, origin):
    """C4 for training: the sample's own documents, and those of larger samples that lie beside it."""
    for path in filter(Path.is_file, (data() / name for name in _MORE_C4)):
        more, _ = readers.read(path)
        documents, origin = documents + more, f"{origin}; {place(path)}, {len(more)} documents"
    return documents, origin


def _local(name):
    """The file or folder that `name` means: for some names one known file, since its folder may hold other text."""
    named = Path(_FILES.get(name, name)).expanduser()
    if not named.is_absolute() and (not name or data() is None):
        return None
    named = (data() or Path()) / named
    return named if os.path.exists(named) else None  # False for what can be no path, where `Path.exists` raises


def _looked():
    return " (THIMBLE_DATA is not set)" if data() is None else f" in THIMBLE_DATA={data()}"


def _names():
    inside = data().iterdir() if data() is not None and data().is_dir() else []
    return {"packaged", *hub.TEXTS, *(path.name for path in inside if path.is_dir())}


def _given(ids):
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"a {ids.dtype} tensor of shape {list(ids.shape)} was given; token ids are integers [count, length]."
        )
    return ids.detach().cpu().long()
