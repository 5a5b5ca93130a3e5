"""Builds custom attention masks in the form that a model accepts."""

import torch
from torch import Tensor, nn

from lib.models import blocks

WINDOWS = {
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
}  # a known setting, or not a size


def prepare(model: nn.Module, visible: Tensor, distance: Tensor):
    """The `attention_mask` argument, from the pairs of positions that attend to each other.

    visible: bool [Q, K] or [B, 1, Q, K]; distance: positions between query and key, of the same shape or one that
    broadcasts. The result is additive, [1 or B, 1, Q, K] in the model's dtype; where some layers see a window only,
    a dict by layer type, as transformers' own models make it.
    """
    config = blocks.config(model)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    unknown += [name for name, value in vars(config).items() if _is_other_window(name, value)]
    if unknown:
        raise ValueError(f"attention by {', '.join(unknown)}, whose masks are not made here; run requests alone.")
    if window is None or not getattr(config, "use_sliding_window", True) or int(distance.max()) < window:
        full = _additive(model, visible)
        return {kind: full for kind in kinds} if len(kinds) > 1 else full
    near = _additive(model, visible & (distance < window))
    if not kinds or kinds == {"sliding_attention"}:
        return near
    full = _additive(model, visible)
    return full if kinds == {"full_attention"} else {"full_attention": full, "sliding_attention": near}


def _is_other_window(name: str, value) -> bool:
    """Whether a setting is a window of another kind: GPT-Neo's counts columns of the cache instead of positions."""
    return "window" in name and name not in WINDOWS and isinstance(value, int) and value > 0


def _additive(model: nn.Module, visible: Tensor) -> Tensor:
    dtype = blocks.embeddings(model).weight.dtype
    visible = visible if visible.ndim == 4 else visible[None, None]
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
