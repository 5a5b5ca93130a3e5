"""Rotary position tables that change with text length: one made for a short text is wrong for a long one.

Two kinds of rotary embeddings choose their frequencies by the longest position of the call, for all of its positions:

    longrope   one set up to `original_max_position_embeddings` tokens, another beyond (Ding et al., arXiv 2402.13753)
    dynamic    one set up to `max_position_embeddings` tokens, beyond a set of its own for each length (NTK scaling)

A request that shares a pass with a longer one, or keys cached while the text grew, would thus give another answer than
the request alone. Code that shares a pass or a cache asks `Tables` whether two lengths have the same tables.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Tables:
    """When the position tables of a model change.

    limits: (tokens up to which tables stay the same, whether they change with each token beyond), for all that change.
    """

    limits: tuple[tuple[int, bool], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Tables":
        """Those of `model`, from its rotary embeddings."""
        found = set()
        for module in model.modules():
            found |= {(int(module.original_max_seq_len), True) for _ in _named(module, "dynamic")}
            for layer in _named(module, "longrope"):
                parameters = module.config.rope_parameters
                parameters = parameters[layer] if layer is not None else parameters
                found.add((int(parameters["original_max_position_embeddings"]), False))
        return cls(tuple(sorted(found)))

    @property
    def change(self) -> bool:
        """Whether they change with the length of the text at all."""
        return bool(self.limits)

    def kind(self, length: int) -> tuple[int, ...]:
        """A key of the tables for a text of `length` tokens: equal for two lengths where the tables are equal."""
        return tuple(0 if length <= limit else length if grows else 1 for limit, grows in self.limits)

    def alike(self, length: int) -> bool:
        """Whether all texts of up to `length` tokens are read by the same tables."""
        return all(length <= limit for limit, _ in self.limits)


@contextlib.contextmanager
def forgetting(model: nn.Module) -> Iterator[None]:
    """Context in which each call uses the tables of its own length.

    Otherwise dynamic tables stay those of an earlier, longer text, until a text shorter than the limit resets them.
    """
    growing = {module: names for module in model.modules() if (names := _named(module, "dynamic"))}
    with contextlib.ExitStack() as stack:
        for module in growing:
            stack.callback(_reset_, module)
            stack.callback(module.register_forward_pre_hook(lambda module, _: _reset_(module)).remove)
        yield


def _named(module: nn.Module, wanted: str) -> list[str | None]:
    """The kinds of layers for which `module` makes tables of the type `wanted`; [None] where all layers share them."""
    types = getattr(module, "rope_type", None)
    types = types if isinstance(types, dict) else {None: types}
    return [layer for layer, name in types.items() if isinstance(name, str) and wanted in name]


def _reset_(module: nn.Module) -> None:
    """Put a rotary embedding with dynamic tables back to those of short texts."""
    for layer in _named(module, "dynamic"):
        prefix = "" if layer is None else f"{layer}_"
        now, first = (getattr(module, f"{prefix}{name}") for name in ("inv_freq", "original_inv_freq"))
        module.register_buffer(f"{prefix}inv_freq", first.to(now.device), persistent=False)
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
