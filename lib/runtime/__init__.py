"""Packed models that run in fewer bytes and less time: `pack_`, `load`, `Session`, `generate`.

Nothing here imports torch before it is needed: a process that only generates from a packed folder does without it.
"""

import importlib

_WHERE = {
    "pack_": "modules",
    "Session": "engine",
    "Batch": "engine",
    "load": "checkpoint",
    "generate": "text_generation",
}
__all__ = list(_WHERE)


def __getattr__(name: str):
    """Import the file of a name when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_WHERE)}.")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
