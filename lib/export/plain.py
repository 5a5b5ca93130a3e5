"""Ordinary checkpoints: safetensors that plain transformers opens. A folder is complete or absent."""

import os
from pathlib import Path

from torch import nn

from lib import folders, tokenization
from lib.checkpoints import quiet
from lib.export import packing, stored_tensors
from lib.models import blocks

SHARD = "5GB"
ROOM = 16 << 20  # bytes for tokenizer, configuration and file headers


def save(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model` (unquantized, possibly pruned) and `tokenizer` to `folder`; returns `folder`.

    The folder gets `manifest.json` with the SHA-256 of every file. It is complete or absent, and replaces an older
    one of the project's at the end. Raises ValueError for a model with quantized layers, and before the work
    OSError (FileExistsError, PermissionError, ...) for folders that the project did not write, and for missing rights
    or space.
    """
    check(model, tokenizer)
    return write(model, tokenizer, folder, kind="plain")


def check(model: nn.Module, tokenizer) -> None:
    """Raise ValueError for a model with quantized layers or without a tokenizer."""
    quantized = [name for name, module in model.named_modules() if blocks.is_quantized(module)]
    if quantized:
        raise ValueError(
            f"{type(model).__name__} has {len(quantized)} quantized layers, the first is {quantized[0]}; an ordinary "
            "checkpoint has none; write it with export.compressed_tensors.save."
        )
    if tokenizer is None:
        raise ValueError(f"{type(model).__name__} has no tokenizer; a checkpoint needs one; set model.tokenizer.")


def write(model: nn.Module, tokenizer, folder: Path | str, **origin) -> Path:
    """Check `folder`, let transformers write `model` and `tokenizer`; the manifest also holds `origin`."""
    blocks.refuse_adapters(model)
    template = getattr(tokenizer, "chat_template", None) or ""
    for each in template.values() if isinstance(template, dict) else [template]:
        tokenization.check(each, "the chat template")
    folders.check(folder, size(model) + ROOM)
    with folders.replace(folder, **origin) as temporary:
        fill(model, tokenizer, temporary)
    return Path(os.path.expanduser(folder))


def fill(model: nn.Module, tokenizer, folder: Path) -> None:
    """Let transformers write `model` and `tokenizer` into `folder`, which the caller makes complete or absent."""
    with quiet():
        blocks.state_tying_(model)
        model.save_pretrained(folder, max_shard_size=SHARD)
        tokenizer.save_pretrained(folder)


def size(model: nn.Module) -> int:
    """Bytes of the tensors that a checkpoint of `model` holds: tied ones once, quantized layers packed."""
    state = stored_tensors.packed_state(model, pack=packing.outline)
    sizes = {tensor.data_ptr() or key: tensor.nbytes for key, tensor in state.items()}  # no address on the meta device
    return sum(sizes.values())
