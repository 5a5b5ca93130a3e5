"""Reads from config.json which grid a matrix has, without torch, for a process that only generates.

A target is the name of a module, "re:" and a regular expression that names begin with, or a class of modules, "Linear"
or "Embedding"; of several that match, a name comes before an expression and an expression before a class.
"""

import re
from typing import NamedTuple

BITS = range(2, 9)
SHARED = "codebooks."  # beginning of the names of stored codebooks that several matrices use
OWN = "weight_codebook"  # the codebook of one matrix, stored beside its codes
SHIFTED = {
    "half": "half_integer",
    "balanced": "balanced",
    "pairs": "pairs",
}  # the type in config.json of other levels than integers


class Scheme(NamedTuple):
    """A grid: bits, group size (-1: one group a row), whether the zero is the middle code, place of its codebook.

    codebook: None for evenly spaced levels, whose zero points are then of the kind `levels`; of pairs their books.
    """

    bits: int
    group_size: int
    symmetric: bool
    codebook: str | None
    levels: str


def find(config: dict, name: str, kind: str) -> Scheme | None:
    """The grid of the module `name` of class `kind` in a `quantization_config`; None where it is no target.

    Raises ValueError for grids that quantized layers can't hold.
    """
    groups = {target: group for group in (config.get("config_groups") or {}).values() for target in group["targets"]}
    exact = [target for target in groups if target == name]
    expressions = [t for t in sorted(groups) if t.startswith("re:") and re.match(t.removeprefix("re:"), name)]
    matches = exact + expressions + [target for target in groups if target == kind]
    return scheme(groups[matches[0]], name) if matches else None


def scheme(group: dict, name: str) -> Scheme:
    """The grid of a config group; refuses those that `QuantLinear` doesn't have."""
    weights = group.get("weights") or {}
    bits, strategy, kind = weights.get("num_bits"), weights.get("strategy"), weights.get("type", "int")
    known = kind in ("int", "codebook", *SHIFTED.values()) and not weights.get("dynamic") and bits in BITS
    if not known or strategy not in ("group", "channel") or group.get("input_activations"):
        raise ValueError(
            f"{name} has {bits} bits of type {kind!r} and strategy {strategy!r}; integer weights (or a codebook) of "
            "2 to 8 bits by group or channel are read, with activations as they are; choose another checkpoint."
        )
    size = weights["group_size"] if strategy == "group" else -1
    levels = next((levels for levels, name in SHIFTED.items() if name == kind), "integer")
    symmetric = levels == "integer" and weights.get("symmetric", True)
    where = weights.get("codebook", OWN) if kind == "codebook" else OWN if levels == "pairs" else None
    return Scheme(bits, size, symmetric, where, levels)
