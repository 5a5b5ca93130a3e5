"""Is a checkpoint folder safe and whole? Looked at before anything in it is loaded.

Refused, each with what to do: folders without weights or configuration, git-LFS pointers, shards that are missing, cut
short or changed (SHA-256 in `manifest.json`), pickles, remote code, models that are no decoder, NaN and infinity.
"""

import json
from pathlib import Path

from lib import files
from lib.sources import place

MANIFEST = "manifest.json"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_LFS = b"version https://git-lfs.github.com/spec/"
_DECODERS = ("ForCausalLM", "LMHeadModel")
_verified: dict[tuple, str] = {}


def checkpoint(folder: Path | str) -> dict:
    """Check everything that can be checked before loading; returns the parsed config.json.

    Raises `FileNotFoundError` for what is missing, `ValueError` for what is damaged or unsafe.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()):
        _refuse_pointer(path)
    config = _json(folder / "config.json")
    _refuse_remote_code(folder, config)
    _refuse_other_kinds(folder, config)
    for path in weights(folder):
        _check_size(path)
    verify(folder)
    return config


def weights(folder: Path | str) -> list[Path]:
    """The safetensors files that a checkpoint consists of, in order of name; pickles and missing shards are refused."""
    folder = Path(folder)
    if (folder / _INDEX).is_file():
        shards = _json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{place(folder / _INDEX)} names no shards; it needs a weight_map; copy the folder again.")
        found = [folder / name for name in sorted(set(shards.values()))]
        missing = [path.name for path in found if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{place(folder)} lacks {', '.join(missing)} of {len(found)} shards that its index names; "
                "all must be there; copy the missing ones."
            )
        return found
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ValueError(
            f"{place(folder)} holds its weights as pickle ({', '.join(pickles)}), which can run any code when opened; "
            "only safetensors are loaded; convert it where you trust it, or choose a copy with model.safetensors."
        )
    raise FileNotFoundError(
        f"{place(folder)} has no weights; it needs {_SINGLE}, or {_INDEX} and its shards; "
        "copy them there, or choose another folder."
    )


def verify(folder: Path | str) -> dict[str, str]:
    """Compare every file that `manifest.json` lists with its SHA-256; returns name -> SHA-256, {} without manifest."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return {}
    listed = _json(folder / MANIFEST).get("files")
    if not isinstance(listed, dict):
        raise ValueError(f'{place(folder / MANIFEST)} has no "files" (name to SHA-256); delete it, or write it again.')
    for name, expected in listed.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{place(folder / name)} is missing, but the manifest lists it; copy it again.")
        found = sha256(folder / name)
        if found != expected:
            raise ValueError(
                f"{place(folder / name)} is damaged: SHA-256 {found[:12]}, the manifest says {str(expected)[:12]}; "
                "delete the folder and load or copy the model again."
            )
    return listed


def sha256(path: Path | str) -> str:
    """SHA-256 of a file; read once per process as long as its size and time of change stay."""
    state = Path(path).stat()
    key = (str(Path(path).absolute()), state.st_size, state.st_mtime_ns)
    if key not in _verified:
        _verified[key] = files.sha256(path)
    return _verified[key]


def write_manifest(folder: Path | str, **origin) -> Path:
    """Write `manifest.json`: the SHA-256 of every file in `folder`, and what else `origin` says about it."""
    folder = Path(folder)
    hashes = {path.name: files.sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    return files.write_text(folder / MANIFEST, json.dumps({**origin, "files": hashes}, indent=1))


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
    if config.get("is_encoder_decoder"):
        found = "an encoder-decoder"
    elif kinds and not any(str(kind).endswith(_DECODERS) for kind in kinds):
        found = f"a {', '.join(kinds)}"
    else:
        return
    raise ValueError(
        f"{place(folder)} is {found}; only decoder-only language models are compressed here; "
        "choose one whose config.json names an architecture that ends in ForCausalLM."
    )


def _check_size(path):
    """A safetensors file is 8 bytes of header length, the JSON header, and the tensors up to the last offset."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= size - 8:
                raise ValueError
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(
                f"{place(path)} has no readable safetensors header ({size} bytes in all); "
                "it is damaged or cut short; copy it again."
            ) from None
    if size != 8 + length + end:
        raise ValueError(
            f"{place(path)} has {size} bytes where its header asks for {8 + length + end}; "
            "it was cut short or changed; copy it again."
        )


def _json(path):
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{place(path)} is missing; a model folder needs config.json; copy it there, or choose another folder."
        ) from None
    except ValueError as error:
        raise ValueError(f"{place(path)} is not JSON ({error}); copy it again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place(path)} is not a JSON object; copy it again.")
    return found
