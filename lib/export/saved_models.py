"""A saved model, packed or plain, in memory: what the command lines of exporters and certificates begin with."""

from pathlib import Path

from torch import nn

from lib import checkpoints
from lib.export import compressed_tensors


def load(folder: Path | str) -> tuple[nn.Module, object]:
    """(model in eval mode, tokenizer) of a checkpoint: with its codes where it is packed, else in its own type.

    Raises FileNotFoundError or ValueError for folders that are none, as `checkpoints.checkpoint` does.
    """
    if checkpoints.checkpoint(folder).get("quantization_config"):
        return compressed_tensors.load(folder)
    from transformers import AutoModelForCausalLM  # loads slowly, only for plain checkpoints

    with checkpoints.quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    return model.eval(), checkpoints.tokenizer(folder)
