"""Checkpoints of a training: safetensors and JSON, whole or absent, and known to be good (`trainer.Loop` writes them).

A checkpoint holds the trained weights only, with the optimizer's memory; all others are those of the initial model. Its
tensors lie in one file, or, where several processes have the weights spread over them, in one of each process.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from lib import folders
from lib.trainers import processes

TENSORS, STATE = "training.safetensors", "state.json"
KEPT = (TENSORS, STATE, TRAINER_STATE_NAME)  # all files of a checkpoint in one part
_NAME = re.compile(r"checkpoint-(\d+)")
_PART = re.compile(r"training-\d{5}-of-(\d{5})\.safetensors")


def part(place: int, count: int) -> str:
    """Name of the file with the tensors of process `place`, from 0, of `count` with spread weights; 1: whole ones."""
    return TENSORS if count == 1 else f"training-{place + 1:05}-of-{count:05}.safetensors"


def names(count: int) -> tuple[str, ...]:
    """All files of a checkpoint in `count` parts."""
    return tuple(part(place, count) for place in range(count)) + KEPT[1:]


def parts(checkpoint: Path) -> int:
    """In how many parts the tensors of a complete checkpoint lie."""
    found = {int(match[1]) for match in map(_PART.fullmatch, _held(checkpoint)) if match}
    return max(found, default=1)


@contextlib.contextmanager
def written(target: Path, count: int) -> Iterator[Path]:
    """Yield a temporary folder that becomes the checkpoint `target` when all `count` processes have written their part.

    They must see the same disk. Where one can't write, all raise OSError, and nothing is left.
    """
    if count == 1:
        with folders.replace(target, kept=KEPT) as temporary:
            yield temporary
        return
    with contextlib.ExitStack() as stack:
        temporary = None
        with _shared_error():
            if processes.first():
                temporary = stack.enter_context(folders.replace(target, kept=names(count)))
        temporary = Path(processes.of_first(None if temporary is None else str(temporary)))
        with _shared_error():
            yield temporary
        with _shared_error():
            stack.close()


@contextlib.contextmanager
def _shared_error() -> Iterator[None]:
    """An error of one process is one of all of them, so that none waits for another."""
    own = None
    try:
        yield
    except Exception as error:
        own = error
    found = [each for each in processes.all_of(own and str(own)) if each]
    if found:
        raise own or OSError(f"another process of this training can't write its checkpoint: {found[0]}")


def check_parts(folder: Path, count: int) -> None:
    """Raise ValueError where the newest checkpoint in `folder` has another number of parts than `count`."""
    there = checkpoints(folder)
    if there and (found := parts(there[-1])) != count:
        kinds = ["whole weights" if each == 1 else f"weights spread over {each} processes" for each in (found, count)]
        raise ValueError(
            f"{there[-1]} is of a training with {kinds[0]}, and this one has {kinds[1]}; it goes on as it began only; "
            f"start {found} {'process' if found == 1 else 'processes'} again, or give another folder."
        )


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first, without those of other programs under the same names."""
    return [path for path in _named(folder) if _held(path) == set(names(parts(path)))]


def refuse_others(folder: Path) -> None:
    """Raise ValueError where checkpoints of another program lie in `folder`: ours would take their names."""
    found = [f"{path.name} ({', '.join(sorted(_others(path))[:3])})" for path in _named(folder) if _others(path)]
    if found:
        raise ValueError(
            f"{folder} holds checkpoints of another program: {', '.join(found)}; they are neither read nor replaced; "
            "give another folder."
        )


def remove_older(folder: Path, newest: Path) -> None:
    """Remove our checkpoints except the `newest`, and remains of removed ones after a kill."""
    for path in _named(folder):
        if path != newest and not _others(path):
            shutil.rmtree(path, ignore_errors=True)


def _named(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


def _others(path: Path) -> set[str]:
    """Why a folder, or a file, with a checkpoint's name is not one of ours."""
    return {"a file"} if path.is_file() else {each for each in _held(path) - set(KEPT) if not _PART.fullmatch(each)}


def _held(path: Path) -> set[str]:
    """The names in a folder; empty where another process has just removed it."""
    try:
        return set(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def steps(there: list[Path]) -> int:
    """Number of steps of the newest checkpoint in `there`; 0 without any."""
    return int(_NAME.fullmatch(there[-1].name)[1]) if there else 0


def read(checkpoint: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and plain values of a checkpoint; of one in parts, this process's."""
    count, note = parts(checkpoint), json.loads((checkpoint / STATE).read_text())
    if count > 1:
        note["random"] = note["random"][processes.place()]
    return load_file(checkpoint / part(processes.place() if count > 1 else 0, count)), note


def history(checkpoint: Path) -> list[dict]:
    """What was logged up to a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history
