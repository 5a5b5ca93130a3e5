"""A training's folder: whether its disk is large enough, and whose training it holds."""

import hashlib
from pathlib import Path

from torch import nn

from lib import files, folders
from lib.checkpoints import fingerprint
from lib.jobs import JobState, environment_fingerprint
from lib.models import blocks, structure
from lib.trainers import adapters, checkpoints, processes, training_data

_ROOM = 16 << 20  # bytes of a checkpoint beside the tensors


def open_(folder: Path, model: nn.Module, source: training_data.Source, loss, settings: dict, parts: int) -> JobState:
    """The state of a training in `folder`, with enough disk space for its checkpoints, each in so many `parts`.

    Raises ValueError where the folder belongs to another training, OSError where its disk is too small.
    """
    if source.identity is None:
        raise ValueError(
            f"folder={folder} for a stream that has no `identity`, a string that tells its rows from others': a "
            "training can't resume on data that nobody knows again; set one, or give folder=None."
        )
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    # a value and two moments in float32; while one checkpoint is written, the one before it is still there
    size = 12 * sum(parameter.numel() for parameter in trained.values()) + _ROOM
    files.check_writable(folder / "checkpoint", 2 * size)
    # readable settings from `adapters`; a hash of the names for weights chosen by hand
    names = hashlib.sha256(" ".join(sorted(trained)).encode()).hexdigest()[:12]
    identity = getattr(loss, "identity", None) or {"loss": loss.__module__.rpartition(".")[2]}
    job = {"model": fingerprint(model), "layers": structure.fingerprint(model), **adapters.chosen(model)}
    job |= {"data": source.identity, "names": names, "device": blocks.device(model).type}
    job |= {"architecture": type(model).__name__}
    checkpoints.refuse_others(folder)
    checkpoints.check_parts(folder, parts)
    alone = processes.first()
    state = JobState(folder, alone=alone, **environment_fingerprint("trainers"), **job, **identity, **settings)
    folders.remove_leftovers(folder / "checkpoint", kept=checkpoints.names(parts), name=r"checkpoint-\d+")
    return state
