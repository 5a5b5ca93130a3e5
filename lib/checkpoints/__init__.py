"""Checks that a checkpoint folder is complete and safe, before anything in it is loaded.

It refuses folders without weights or configuration, git-LFS pointers, shards that are missing, truncated or changed
(SHA-256 in `manifest.json`), pickles, remote code, models other than decoders, NaN and infinity; each error says what
to do.
"""

import contextlib
import hashlib
from pathlib import Path

from lib import files
from lib.checkpoints import adapter_files, fingerprints, stored, values
from lib.checkpoints.stored import json_object as _json
from lib.checkpoints.values import Unusable, configured
from lib.checkpoints.words import tokenizer
from lib.files import place
from lib.folders import manifest

MANIFEST = manifest.NAME
LOW_RANK = "low_rank.json"  # in a folder that holds a checkpoint and a low-rank part of its layers
_LFS = b"version https://git-lfs.github.com/spec/"
_DECODERS = ("ForCausalLM", "LMHeadModel")
READ = (  # JSON that transformers reads beside config.json and the weights
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json",
)  # fmt: skip
__all__ = ["LOW_RANK", "MANIFEST", "READ", "Unusable", "adapter_files", "checkpoint", "configured", "finite", "fingerprint", "place",
           "quiet", "rounded_fingerprint", "sha256", "stored", "tokenizer", "verify", "weights", "write_manifest"]  # fmt: skip
sha256, write_manifest = manifest.sha256, manifest.write
rounded_fingerprint = fingerprints.rounded


def checkpoint(folder: Path | str, *, adapter: str | None = None) -> dict:
    """Check everything that can be checked before loading; returns the parsed config.json.

    adapter: what to do with an adapter in the folder, see `adapter_files`; None refuses it.
    Raises `FileNotFoundError` for what is missing, `ValueError` for what is damaged or unsafe.
    """
    files.check_name(folder, written=False)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; that of a checkpoint is needed; look where it lies.")
    if (folder / LOW_RANK).is_file():
        raise ValueError(
            f"{place(folder)} holds a model with a low-rank part beside its layers, which is no checkpoint of its own; "
            "load both with finetuning.low_rank_folder.load."
        )
    for path in sorted(folder.iterdir()):
        _refuse_pointer(path)
    adapter_files.check(folder, adapter)
    config = _json(folder / "config.json")
    _refuse_remote_code(folder, config)
    _refuse_other_kinds(folder, config)
    values.check(folder, config)
    method = (config.get("quantization_config") or {}).get("quant_method")
    stored.check(folder, types=method in (None, "compressed-tensors"))
    for name in READ:  # transformers would go on without some of them: other end tokens, another template
        if (folder / name).is_file():
            _json(folder / name)
    proven = verify(folder)
    if unproven := [path.name for path in weights(folder) if proven and path.name not in proven]:
        raise ValueError(
            f"{place(folder / unproven[0])} is not in {MANIFEST}, which lists other weights; a manifest must list what "
            f"is read; copy the folder again, or, if you changed it, move {MANIFEST} elsewhere."
        )
    return config


def weights(folder: Path | str) -> list[Path]:
    """The safetensors files that a checkpoint consists of, in order of name; see `stored.listed`."""
    return stored.listed(folder)


def verify(folder: Path | str) -> dict[str, str]:
    """Compare every file that `manifest.json` lists with its SHA-256; returns name -> SHA-256, {} without manifest.

    A manifest of another program proves nothing here, and is left alone. Raises ValueError, naming all files that have
    changed, or FileNotFoundError for those that are missing.
    """
    folder = Path(folder)
    listed = _listed(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    missing = [name for name in listed if not (folder / name).is_file()]
    changed = [name for name in listed if name not in missing and sha256(folder / name) != listed[name]]
    if changed:
        first = changed[0]
        more = f" (so have {', '.join(changed[1:])})" if changed[1:] else ""
        gone = f"; {', '.join(missing)} are missing" if missing else ""
        raise ValueError(
            f"{place(folder / first)} has changed since its manifest was written: SHA-256 "
            f"{sha256(folder / first)[:12]}, listed is {listed[first][:12]}{more}{gone}. Another program may have "
            "written it (save_pretrained does, and leaves the manifest as it was) or it is damaged: the hash can't "
            f"tell. If you changed it, move {MANIFEST} elsewhere, and the folder is loaded as it is now; if not, copy "
            "or save the model again."
        )
    if missing:
        raise FileNotFoundError(
            f"{place(folder / missing[0])} is missing, but the manifest lists it"
            + (f" (and {', '.join(missing[1:])})" if missing[1:] else "")
            + f"; copy it again, or, if you took it away yourself, move {MANIFEST} elsewhere."
        )
    return listed


def _listed(path: Path) -> dict[str, str]:
    """The files that a manifest lists; none of a manifest in another program's form, which is said."""
    try:
        found = _json(path)
    except ValueError as error:
        if "is not a JSON object" in str(error):
            return _others(path)
        raise ValueError(
            f"{str(error).partition('; ')[0]}; the manifest of a folder must be whole; copy the folder again, or move "
            f"{MANIFEST} elsewhere if another program wrote it."
        ) from None
    listed = found.get("files")
    if manifest.is_list(listed):
        return listed
    if found and not manifest.named(found):
        return _others(path)
    raise ValueError(
        f'{place(path)} has no "files" (name to SHA-256), which a manifest has; copy the folder again, or move '
        f"{MANIFEST} elsewhere, and the folder is loaded as it is now."
    )


def _others(path: Path) -> dict:
    print(f"{place(path)} is in another program's form: what lies there is loaded as it is")
    return {}


def finite(model, name: str = "the model") -> None:
    """Raise `ValueError` naming the first tensor of `model` that holds NaN or infinity."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{key} of {name} holds {bad} NaN or infinite values in {tensor.dtype}; all weights must be finite; "
                "load it as float32 if the numbers are too large for this type, else get an undamaged copy."
            )


def _refuse_pointer(path):
    if not path.is_file() or path.stat().st_size > 1024:
        return
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ValueError(
                f"{place(path)} is a git-LFS pointer, not the file itself; run `git lfs pull` in its repository."
            )


def _refuse_remote_code(folder, config):
    for name in ("config.json", "tokenizer_config.json"):
        found = config if name == "config.json" else _json(folder / name) if (folder / name).is_file() else {}
        if "auto_map" in found:
            raise ValueError(
                f"{place(folder / name)} asks to run code of its own (auto_map); only architectures that transformers "
                "itself implements are loaded; if it implements this one, delete auto_map from a copy of the folder."
            )


def _refuse_other_kinds(folder, config):
    kinds = config.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        found = f"architectures={kinds!r}, which is no list of names"
    elif config.get("is_encoder_decoder"):
        found = "an encoder-decoder"
    elif kinds and not any(str(kind).endswith(_DECODERS) for kind in kinds):
        found = f"a {', '.join(kinds)}"
    else:
        return
    raise ValueError(
        f"{place(folder)} is {found}; only decoder-only language models are compressed here; "
        "choose one whose config.json names an architecture that ends in ForCausalLM."
    )


def fingerprint(source) -> str:
    """Hexadecimal SHA-256 that tells models apart.

    Of a checkpoint folder: the SHA-256 of its weights' file (of the list of its shards' hashes where there are
    several). Of a model: that of its tensors as they are now, so a model changed in place has another one.
    """
    if isinstance(source, str | Path):
        hashes = [f"{sha256(path)}  {path.name}\n" for path in weights(source)]
        return hashes[0].split()[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    return fingerprints.exact(source)


@contextlib.contextmanager
def quiet():
    """Without the progress bars and warnings of transformers, whose settings are then put back as they were.

`load` checks itself what transformers' loading report would say (weights that are missing or unused).
    """

    from transformers.utils import logging  # loads torch; folders are checked without it

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
