"""The weight files of a checkpoint: one list, used by every reader and by every fingerprint.

A folder may hold more than its model: an older single file beside shards, another type's variant, the layout of
another program. Programs differ in which of these they read, so a folder that could be read in two ways is refused.
"""

import json
from pathlib import Path

from lib.files import place

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_FLOATS = ("F64", "F32", "F16", "BF16")
_TYPES = (*_FLOATS, "I64", "I32", "I16", "I8", "U8", "BOOL")  # that models, their masks and packed codes have


def listed(folder: Path | str) -> list[Path]:
    """The safetensors files that a checkpoint consists of, in order of name.

    Raises `FileNotFoundError` for missing ones, `ValueError` for pickles, for an index that is damaged or names files
    elsewhere, and for a folder that holds both a single file and shards.
    """
    folder = Path(folder)
    single = folder / SINGLE
    if (folder / INDEX).is_file():
        found = [folder / name for name in sorted(set(attributed(folder).values()))]
        if single.is_file() and found != [single]:
            raise ValueError(
                f"{place(folder)} holds {SINGLE} and, by its index, {len(found)} shards ({found[0].name} first); one "
                f"of the two is read, and readers differ in which; move {SINGLE} elsewhere, or {INDEX} and its shards."
            )
        missing = [path.name for path in found if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{place(folder)} lacks {', '.join(missing)} of {len(found)} shards that its index names; "
                "all must be there; copy the missing ones."
            )
        return found
    if single.is_file():
        return [single]
    raise _none(folder)


def attributed(folder: Path) -> dict[str, str]:
    """The index of a sharded checkpoint: the file of each tensor, all of them beside the index."""
    shards = json_object(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{place(folder / INDEX)} names no shards; it needs a weight_map; copy the folder again.")
    for key, name in shards.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{place(folder / INDEX)} has {key} in {name!r}; shards are safetensors files beside their index; "
                "copy the folder again, or choose another."
            )
    return shards


def check(folder: Path, *, types: bool = True) -> None:
    """Raise ValueError when weights in `folder` are truncated, stored in two files, or of unsupported types.

types: whether to check types; not in checkpoints that other programs have quantized.
    """
    paths, holder = listed(folder), {}
    for path in paths:
        for key, entry in header(path).items():
            if key in holder:
                raise ValueError(
                    f"{place(folder)} holds {key} in {holder[key]} and in {path.name}; each tensor may stand in one "
                    "file; copy the folder again."
                )
            holder[key] = path.name
            if types and entry["dtype"] not in (_FLOATS if _is_weight(key, entry) else _TYPES):
                raise ValueError(
                    f"{key} in {place(path)} is of type {entry['dtype']}; {', '.join(_FLOATS)} are read, and packed "
                    "codes; choose the original in one of those types, or convert it with the scales that belong to it."
                )
    if (folder / INDEX).is_file():
        _compare(folder, attributed(folder), holder)


def _is_weight(key: str, entry: dict) -> bool:
    """Whether a tensor is one that a layer computes with, rather than a mask, positions or packed codes.

Integers there are codes without their scales: cast to floats they would silently be another model.
    """
    name = key.rpartition(".")[2]
    return name == "weight" or name.endswith("_proj") or (name == "bias" and len(entry["shape"]) == 1)


def _compare(folder: Path, said: dict[str, str], holder: dict[str, str]) -> None:
    """Refuse an index that does not match its shards: a reader that follows it would read another model."""
    for key, name in holder.items():
        if said.get(key) != name:
            shown = f"has {key} in {said[key]}" if key in said else f"does not name {key}"
            raise ValueError(
                f"{place(folder / INDEX)} {shown}, which stands in {name}; an index must be that of its shards; "
                "copy the folder again."
            )


def header(path: Path) -> dict[str, dict]:
    """Type, shape and place of each tensor of a safetensors file; ValueError when it is damaged or cut short."""
    return opened(path)[1]


def opened(path: Path) -> tuple[int, dict[str, dict]]:
    """(where the tensors begin, `header`) of a safetensors file.

    The file is 8 bytes of header length, the JSON header, and the tensors up to the last offset, counted from where
    they begin.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= size - 8:
                raise ValueError
            found = json.loads(file.read(length))
            found.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in found.values()), default=0)
            if not all("dtype" in entry and isinstance(entry["shape"], list) for entry in found.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise ValueError(
                f"{place(path)} has no readable safetensors header ({size} bytes in all); "
                "it is damaged or cut short; copy it again."
            ) from None
    if size != 8 + length + end:
        raise ValueError(
            f"{place(path)} has {size} bytes where its header asks for {8 + length + end}; "
            "it was cut short or changed; copy it again."
        )
    return 8 + length, found


def json_object(path: Path) -> dict:
    """The JSON object in `path`, UTF-8 as transformers reads it; FileNotFoundError or ValueError when there is none."""
    try:
        found = json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{place(path)} is missing; a model folder needs {path.name}; copy it there, or choose another folder."
        ) from None
    except OSError as error:
        raise ValueError(f"{place(path)} can't be read ({error.strerror}); it must be a file; copy it again.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place(path)} is not JSON ({error}); it may be cut short; copy it again.") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{place(path)} is not a JSON object but {_kind(found)}; an object is allowed; copy it again."
        )
    return found


def _kind(found) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(found), "a number")


def settings(folder: Path | str) -> dict:
    """What a checkpoint says of generation: generation_config.json where there is one, else config.json, else {}."""
    for name in ("generation_config.json", "config.json"):
        if (Path(folder) / name).is_file():
            return json_object(Path(folder) / name)
    return {}


def _none(folder: Path) -> Exception:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if Path(name).suffix in _PICKLES]
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return FileNotFoundError(
            f"{place(folder)} has no {SINGLE} and no index, but {', '.join(others[:3])}; which of them are the model "
            f"is not guessed; rename the one that is to {SINGLE}, in a folder of its own, or choose another copy."
        )
    if pickles:
        return ValueError(
            f"{place(folder)} holds its weights as pickle ({', '.join(pickles)}), which can run any code when opened; "
            "only safetensors are loaded; convert it where you trust it, or choose a copy with model.safetensors."
        )
    return FileNotFoundError(
        f"{place(folder)} has no weights; it needs {SINGLE}, or {INDEX} and its shards; "
        "copy them there, or choose another folder."
    )
