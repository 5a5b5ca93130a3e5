"""What tells models apart: a hash of their tensors as they are in memory."""

import hashlib
from collections.abc import Callable


def exact(model) -> str:
    """Hexadecimal SHA-256 of the names, types, shapes and bytes of a model's tensors."""
    return _of(model, lambda tensor: tensor)


def rounded(model) -> str:
    """As `exact`, with floats rounded to bfloat16: equal however the model was loaded.

    A checkpoint in float32 or bfloat16 has the same one in either type, which is how adapters know their model.
    """
    return _of(model, lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)


def _of(model, change: Callable) -> str:
    import torch  # folders are checked without torch

    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        tensor = change(tensor.detach())
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
