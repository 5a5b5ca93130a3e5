"""Fingerprint of what, beside its weights, decides a model's outputs: its layers and its configuration.

Two models with the same state dict may compute different outputs: `Int8Linear` and `QuantLinear` save the same tensors,
and no weight holds a rotary base or an epsilon.
"""

import hashlib
import json

from torch import nn

from lib.models import blocks

SAYS_NOTHING = (  # where a model came from, how it is stored, what only training or other heads read
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "quantization_config", "torch_dtype",
    "transformers_version", "use_cache",
)  # fmt: skip


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of every module's path, class and settings (`extra_repr`), and of the configuration's values.

    Paths, versions and types of storage are left out: a model that was saved and loaded has the hash that it had.
    """
    modules = [[name, type(each).__name__, each.extra_repr()] for name, each in model.named_modules()]
    config = values(blocks.config(model).to_dict())
    return hashlib.sha256(json.dumps([modules, config], sort_keys=True, default=str).encode()).hexdigest()


def values(config: dict) -> dict:
    """A configuration without `SAYS_NOTHING`, whose parts (of text, say) may hold configurations too."""
    kept = {key: value for key, value in config.items() if key not in SAYS_NOTHING}
    return {key: values(value) if isinstance(value, dict) else value for key, value in kept.items()}
