"""Stored hidden states of an original model: comparing with it costs only its head, not a forward pass."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import nn

from lib import checkpoints, files
from lib.models import blocks, logits, structure


@dataclass(frozen=True)
class Reference:
    """Hidden states of an original model after its final norm, and its head.

    `tokens` LongTensor [count, length]; `states` [count, length - 1, hidden] in the model's dtype, on the CPU;
    `projection` from states to logits, with its own copy of the head; `fingerprint` of the model's weights.
    """

    tokens: torch.Tensor
    states: torch.Tensor
    projection: logits.Projection
    fingerprint: str

    @classmethod
    def of(cls, original: nn.Module, tokens: torch.Tensor, states: torch.Tensor) -> "Reference":
        """A reference with the projection (copied) and the fingerprint of `original`."""
        return cls(tokens.cpu(), states, logits.Projection.of(original).frozen(), fingerprint(original))

    def rows(self, start: int, count: int) -> logits.Rows:
        """The original's logits on `count` windows from window `start` on."""
        states = self.states[start : start + count].to(blocks.device(self.projection.head))
        return logits.rows(states, self.projection)

    def check(self, tokens: torch.Tensor) -> None:
        """Raise ValueError unless `tokens` are this reference's first windows."""
        if not torch.equal(self.tokens[: len(tokens)], tokens.cpu()):
            ours, given = (files.data_hash(each)[:12] for each in (self.tokens, tokens))
            raise ValueError(
                f"the reference remembers tokens {list(self.tokens.shape)} with hash {ours} "
                f"and those given are {list(tokens.shape)} with {given}; "
                "remember the original on this text."
            )

    def save(self, path: Path | str) -> Path:
        """Write tokens and states as safetensors, whole or not at all; `load` takes the head from the model.

        Raises FileExistsError where something lies at `path` that is no reference.
        """
        tensors = {"tokens": self.tokens.contiguous(), "states": self.states.contiguous()}
        metadata = {"fingerprint": self.fingerprint, "states": digest(self.states), "tokens": digest(self.tokens)}
        files.check_writable(path, 2 * sum(tensor.nbytes for tensor in tensors.values()))
        _refuse_others(Path(path))
        return files.write_bytes(path, as_bytes(tensors, metadata={"thimble": json.dumps(metadata)}))

    @classmethod
    def load(cls, path: Path | str, original: nn.Module) -> "Reference":
        """Read what `save` wrote; raises ValueError when it belongs to other weights or its bytes have changed."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get("thimble", "{}"))
                tensors = {name: file.get_tensor(name) for name in ("tokens", "states")}
        except SafetensorError as error:
            raise ValueError(f"{path} is no reference ({error}); delete it and remember the original again.") from error
        for name, tensor in tensors.items():
            if metadata.get(name) != digest(tensor):
                raise ValueError(f"{path} has changed since it was written ({name}); delete it and remember again.")
        made = cls.of(original, tensors["tokens"], tensors["states"])
        if made.fingerprint != metadata["fingerprint"]:
            raise ValueError(
                f"{path} remembers a model with fingerprint {metadata['fingerprint'][:12]} and the model given has "
                f"{made.fingerprint[:12]}; give the original that it was made from."
            )
        return made

    @staticmethod
    def path(original: nn.Module, tokens: torch.Tensor) -> Path:
        """Path in the cache folder for the reference of this model on these tokens."""
        return files.cache() / "references" / f"{fingerprint(original)[:16]}-{files.data_hash(tokens)[:16]}.safetensors"


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers, over layers and configuration."""
    parts, saved = [checkpoints.fingerprint(model), structure.fingerprint(model)], model.state_dict().keys()
    # buffers that are not saved: frequencies of rotary embeddings, say
    parts += [f"{name} {digest(tensor)}" for name, tensor in model.named_buffers() if name not in saved]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 over type, shape and bytes of a tensor."""
    hasher = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()


def _refuse_others(path: Path) -> None:
    """Raise FileExistsError for what lies at `path` and is no reference of the project's."""
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            ours = "thimble" in (file.metadata() or {})
    except (SafetensorError, OSError):
        ours = False
    if not ours:
        what = "a folder" if path.is_dir() else "a file of another kind"
        raise FileExistsError(f"{path} is {what}; only a reference is written over; choose another name.")
