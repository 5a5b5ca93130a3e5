"""Ordinary checkpoints: safetensors that plain transformers opens. A folder is complete or absent."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from lib import files
from lib.export import packing

SHARD = "5GB"
ROOM = 16 << 20  # bytes for tokenizer, configuration and file headers
GRACE = 60  # seconds after which an unlocked temporary folder must be a killed save's


def save(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model` (unquantized, possibly pruned) and `tokenizer` to `folder`; returns `folder`.

    The folder gets `manifest.json` with the SHA-256 of every file. It is complete or absent, and replaces an older
    one at the end. Raises ValueError for a model with quantized layers, PermissionError or OSError (before the work)
    when the folder can't be written or its disk is too full.
    """
    check(model, tokenizer)
    return write(model, tokenizer, folder, kind="plain")


def check(model: nn.Module, tokenizer) -> None:
    """Raise ValueError for what is no ordinary checkpoint: quantized layers, or no tokenizer."""
    from lib.models.blocks import is_quantized

    quantized = [name for name, module in model.named_modules() if is_quantized(module)]
    if quantized:
        raise ValueError(
            f"{type(model).__name__} has {len(quantized)} quantized layers, the first is {quantized[0]}; an ordinary "
            "checkpoint has none; write it with export.compressed_tensors.save."
        )
    if tokenizer is None:
        raise ValueError(f"{type(model).__name__} has no tokenizer; a checkpoint needs one; set model.tokenizer.")


def write(model: nn.Module, tokenizer, folder: Path | str, **origin) -> Path:
    """Check `folder`, let transformers write `model` and `tokenizer`, and add a manifest that also holds `origin`."""
    from lib import checkpoints
    from lib.checkpoints import quiet
    from lib.models import blocks

    folder = Path(folder)
    blocks.refuse_adapters(model)
    files.check_writable(folder, size(model) + ROOM)
    remove_leftovers(folder)
    with contextlib.ExitStack() as until_renamed, quiet(), files.folder(folder) as temporary:
        until_renamed.enter_context(_locked(temporary))
        blocks.state_tying_(model)
        model.save_pretrained(temporary, max_shard_size=SHARD)
        tokenizer.save_pretrained(temporary)
        checkpoints.write_manifest(temporary, **origin)
    return folder


def size(model: nn.Module) -> int:
    """Bytes of the tensors that a checkpoint of `model` holds: tied ones once, quantized layers packed."""
    from lib.export import compressed_tensors

    state = compressed_tensors.packed_state(model, pack=packing.outline)
    sizes = {tensor.data_ptr() or key: tensor.nbytes for key, tensor in state.items()}  # no address: on the meta device
    return sum(sizes.values())


def remove_leftovers(folder: Path) -> None:
    """Delete what killed saves of `folder` left beside it; the temporary folder of a save in progress is locked."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        if path.is_dir() and time.time() - path.stat().st_mtime > GRACE:
            with contextlib.suppress(BlockingIOError), _locked(path):
                shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, which ends with the process, however it ends; BlockingIOError when another has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
