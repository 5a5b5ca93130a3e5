"""A checkpoint's tokenizer without torch in memory: the ids and texts of transformers' own, or a refusal.

What transformers makes of a folder depends on more than tokenizer.json: on the classes that two configurations name
(several are built anew from the vocabulary), on tokens and on BOS settings in tokenizer_config.json. So transformers is
asked, once for each state of the folder's files, in a process of its own, since importing it brings torch along. What
it answers, the rules of the `tokenizers` library, is kept. Only where tokenizer.json alone decides is that file read.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as Core

from lib import files
from lib.checkpoints import stored
from lib.files import place

_PLAIN = {  # settings of tokenizer_config.json that change no text's ids
    "backend", "bos_token", "chat_template", "clean_up_tokenization_spaces", "eos_token", "is_local",
    "local_files_only", "model_input_names", "model_max_length", "pad_token", "padding_side", "tokenizer_class",
    "truncation_side", "unk_token",
}  # fmt: skip
_READ = (  # files that transformers may read
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "tekken.json", "tiktoken.model", "vocab.json", "merges.txt",
)  # fmt: skip
_BOTH = ["tokenizer.json", "tokenizer_config.json"]
_SMALL = 100_000  # tokens; vocabularies above this transformers may repair
_OWN = (
    "__call__",
    "_encode_plus",
    "_decode",
    "encode",
    "decode",
)  # a class that overrides one of these does more than apply rules


class Tokenizer:
    """`encode` and `decode` as transformers has them, for a checkpoint's folder; no chat templates.

    Opened at the first use, which raises ValueError for a tokenizer with custom code beyond its rules.
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / "tokenizer.json"

    @cached_property
    def settings(self) -> dict:
        """The tokenizer's settings as transformers reads them; see `described`."""
        return _read_plainly(self.path.parent) or _asked(self.path.parent)

    @cached_property
    def core(self):
        """The `tokenizers.Tokenizer`."""
        try:
            made = Core.from_str(self.settings["rules"])
        except Exception as error:  # a plain one, of the library's
            raise ValueError(
                f"{place(self.path)} holds no rules of a tokenizer ({error}); copy it again, or choose another."
            ) from error
        made.no_truncation()  # a file may hold settings of its training
        made.no_padding()
        return made

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text, None where there is none."""
        return self.settings["bos_token"]

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text, None where there is none."""
        return self.settings["eos_token"]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens that the tokenizer puts around it (such as BOS)."""
        return self.core.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(
        self, tokens, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of token ids.

        clean_up_tokenization_spaces: None takes the folder's setting. Raises ValueError where spaces would be
        removed, which byte-pair encodings never need.
        """
        said = self.settings["clean_up"] if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        if said and type(self.core.model).__name__ != "BPE":
            raise ValueError("clean_up_tokenization_spaces=True; only False is done here; give False.")
        return self.core.decode(list(tokens), skip_special_tokens=skip_special_tokens)


def described(folder: Path | str) -> dict:
    """The tokenizer in `folder` as transformers reads it: its `rules` as JSON text, BOS and EOS, `clean_up`.

    Raises ValueError for tokenizers with custom code beyond rules.
    """
    from transformers import AutoTokenizer  # loads torch: asked in a process of its own
    from transformers.tokenization_utils_tokenizers import TokenizersBackend  # loads torch

    try:
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library of tokenizers raises plain ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"transformers reads no tokenizer there ({reason}); copy its files again.") from error
    kind = type(made)
    own = [base for base in kind.__mro__ if base in TokenizersBackend.__mro__ or not set(_OWN) & set(vars(base))]
    if not isinstance(made, TokenizersBackend) or len(own) < len(kind.__mro__):
        raise ValueError(f"its tokenizer, {kind.__name__}, computes by code of its own; use sources.models.load.")
    if made.split_special_tokens:
        raise ValueError("its tokenizer splits special tokens (split_special_tokens); use sources.models.load.")
    named = {name: getattr(made, name) for name in ("bos_token", "eos_token")}
    return {"rules": made.backend_tokenizer.to_str(), **named, "clean_up": bool(made.clean_up_tokenization_spaces)}


def _read_plainly(folder: Path) -> dict | None:
    """`described` from the files alone, where they determine the result; else None."""
    present = [name for name in _READ if (folder / name).is_file()]
    found = {name: stored.json_object(folder / name) for name in present if name.endswith(".json")}
    if present != _BOTH or _kind(folder).get("model_type") != "llama":
        return None
    rules, said = found.values()
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # what only transformers knows how to read
        whole = {
            token["content"]
            for token in rules.get("added_tokens", ())
            if token["special"]
            and not (token["normalized"] or token["lstrip"] or token["rstrip"] or token["single_word"])
        }
        named = {said.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")} - {None}
        plain = set(said) <= _PLAIN and said.get("tokenizer_class") == "TokenizersBackend"
        if plain and named <= whole and 0 < len(rules.get("model", {}).get("vocab", ())) <= _SMALL:
            ends = {name: said.get(name) for name in ("bos_token", "eos_token")}
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            return {"rules": text, **ends, "clean_up": bool(said.get("clean_up_tokenization_spaces"))}
    return None


def _asked(folder: Path) -> dict:
    """`described`, in this process if transformers is loaded already, else in another one; the result is cached."""
    if "transformers" in sys.modules:
        return _said(folder, lambda: described(folder))
    path = files.cache() / "tokenizers" / f"{_state(folder)}.json"
    if path.is_file():
        return json.loads(path.read_bytes())
    print(f"tokenizer of {folder.name}: asking transformers once, in a process of its own")
    found = _said(folder, lambda: _from_process(folder))
    files.write_text(path, json.dumps(found))
    return found


def _said(folder: Path, ask) -> dict:
    try:
        return ask()
    except ValueError as error:
        raise ValueError(f"{files.place(folder)} cannot be used without torch: {error}") from error


def _from_process(folder: Path) -> dict:
    command = [sys.executable, "-m", "lib.runtime.tokenizer", str(folder.absolute())]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(lines[-1].removeprefix("ValueError: "))
    return json.loads(done.stdout.splitlines()[-1])


def _kind(folder: Path) -> dict:
    """The settings in config.json by which transformers chooses the class of tokenizer."""
    path = folder / "config.json"
    said = stored.json_object(path) if path.is_file() else {}
    names = ("model_type", "model_name", "tokenizer_class", "_name_or_path", "transformers_version")
    return {name: said.get(name) for name in names}


def _state(folder: Path) -> str:
    """SHA-256 of everything that `described` depends on."""
    versions = [importlib.metadata.version(name) for name in ("transformers", "tokenizers")]
    digest = hashlib.sha256(json.dumps([versions, _kind(folder)]).encode())
    for name in (*_READ, "chat_template.jinja"):
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


if __name__ == "__main__":
    print(json.dumps(described(sys.argv[1])))
