"""Checks that a checkpoint folder is complete and safe, before anything in it is loaded.

It refuses folders without weights or configuration, git-LFS pointers, shards that are missing, truncated or changed
(SHA-256 in `manifest.json`), pickles, remote code, models other than decoders, NaN and infinity; each error says what
to do.
"""

import contextlib
import hashlib
from pathlib import Path

from lib.checkpoints import adapter_files, stored
from lib.checkpoints.stored import json_object as _json
from lib.files import place
from lib.folders import manifest

MANIFEST = manifest.NAME
_LFS = b"version https://git-lfs.github.com/spec/"
_DECODERS = ("ForCausalLM", "LMHeadModel")
sha256, write_manifest = manifest.sha256, manifest.write


class Unusable(ValueError):
    """A config.json with values of which transformers can't make a model."""


def checkpoint(folder: Path | str, *, adapter: str | None = None) -> dict:
    """Check everything that can be checked before loading; returns the parsed config.json.

adapter: what to do with an adapter in the folder, see `adapter_files`; None refuses it.
    Raises `FileNotFoundError` for what is missing, `ValueError` for what is damaged or unsafe.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()):
        _refuse_pointer(path)
    adapter_files.check(folder, adapter)
    config = _json(folder / "config.json")
    _refuse_remote_code(folder, config)
    _refuse_other_kinds(folder, config)
    _refuse_values(folder, config)
    quantization = config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        raise ValueError(
            f"{place(folder)} says quantization_config={quantization!r}; settings by name are allowed; mend config.json."
        )
    method = quantization.get("quant_method")
    stored.check(folder, types=method in (None, "compressed-tensors"))
    if (folder / "generation_config.json").is_file():  # transformers would go on without it: other end tokens
        _json(folder / "generation_config.json")
    proven = verify(folder)
    if unproven := [path.name for path in weights(folder) if proven and path.name not in proven]:
        raise ValueError(
            f"{place(folder / unproven[0])} is not in {MANIFEST}, which lists other weights; a manifest must list what "
            f"is read; copy the folder again, or, if you changed it, delete {MANIFEST} there."
        )
    return config


def weights(folder: Path | str) -> list[Path]:
    """The safetensors files that a checkpoint consists of, in order of name; see `stored.listed`."""
    return stored.listed(folder)


def verify(folder: Path | str) -> dict[str, str]:
    """Compare every file that `manifest.json` lists with its SHA-256; returns name -> SHA-256, {} without manifest.

    Raises ValueError, naming all files that have changed, or FileNotFoundError for those that are missing.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return {}
    listed = _json(folder / MANIFEST).get("files")
    if not isinstance(listed, dict):
        raise ValueError(f'{place(folder / MANIFEST)} has no "files" (name to SHA-256); delete it, or write it again.')
    missing = [name for name in listed if not (folder / name).is_file()]
    changed = [name for name in listed if name not in missing and sha256(folder / name) != listed[name]]
    if changed:
        first = changed[0]
        more = f" (so have {', '.join(changed[1:])})" if changed[1:] else ""
        gone = f"; {', '.join(missing)} are missing" if missing else ""
        raise ValueError(
            f"{place(folder / first)} has changed since its manifest was written: SHA-256 "
            f"{sha256(folder / first)[:12]}, listed is {str(listed[first])[:12]}{more}{gone}. Another program may have "
            "written it (save_pretrained does, and leaves the manifest as it was) or it is damaged: the hash can't "
            f"tell. If you changed it, delete {MANIFEST} there, and the folder is loaded as it is now; if not, copy or "
            "save the model again."
        )
    if missing:
        raise FileNotFoundError(
            f"{place(folder / missing[0])} is missing, but the manifest lists it"
            + (f" (and {', '.join(missing[1:])})" if missing[1:] else "")
            + f"; copy it again, or, if you took it away yourself, delete {MANIFEST} there."
        )
    return listed


def finite(model, name: str = "the model") -> None:
    """Raise `ValueError` naming the first tensor of `model` that holds NaN or infinity."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{key} of {name} holds {bad} NaN or infinite values in {tensor.dtype}; all weights must be finite; "
                "load it as float32 if the numbers are too large for this type, else get an undamaged copy."
            )


@contextlib.contextmanager
def configured(folder: Path | str):
    """Inside the block transformers makes a model of config.json; values that it can't use raise `Unusable`."""
    from huggingface_hub.errors import StrictDataclassError  # only where transformers makes a model

    try:
        yield
    except (StrictDataclassError, TypeError, AttributeError, ArithmeticError, IndexError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unusable(
            f"{place(Path(folder) / 'config.json')} has a value that transformers makes no model of ({reason}); "
            "each must be of its kind, as the family's configuration has it; mend it, or copy it again."
        ) from error


def _refuse_values(folder: Path, config: dict) -> None:
    """Refuse token ids that are no integers, and invalid dropout rates, which transformers refuses late."""
    for key, value in config.items():
        if key.endswith("_token_id"):
            many = value if isinstance(value, list) and key == "eos_token_id" else [value]
            fits = all(each is None or (isinstance(each, int) and not isinstance(each, bool)) for each in many)
            allowed = "a whole number or null" + (", or a list of them" if key == "eos_token_id" else "")
        elif key.endswith(("dropout", "_pdrop")):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits, allowed = value is None or (number and 0 <= value <= 1), "a number from 0 to 1"
        else:
            continue
        if not fits:
            raise Unusable(
                f"{place(folder / 'config.json')} has {key}={value!r}; {allowed} is allowed; mend it, or copy it again."
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

    import torch  # folders are checked without torch

    digest = hashlib.sha256()
    for key, tensor in source.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
