"""Chooses blocks and layers by position and role, so that a notebook runs on any model.

A place is the relative depth: 0 is the first block, 1 the last. A kind is the role of a linear layer in its block.
"""

from torch import nn

from lib.files import choices
from lib.models import blocks

KINDS = {
    "query": "the first matrix of the attention, which reads the stream (queries, or queries, keys and values fused)",
    "output": "the last matrix of the attention, which writes to the stream",
    "up": "the last matrix of the MLP that reads the stream",
    "down": "the matrix of the MLP that writes to the stream",
}

OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")  # names of the "output", which Phi-3 holds before the others


def block(model: nn.Module, place: float) -> int:
    """The index of the block at `place`, from 0 (the first) to 1 (the last)."""
    return round(place * (len(blocks.blocks(model)) - 1))


def spread(model: nn.Module, count: int) -> list[int]:
    """Up to `count` block indices, evenly from the first to the last, each once."""
    places = [place / (count - 1) for place in range(count)] if count > 1 else [0.5]
    return sorted({block(model, place) for place in places})


def linear(model: nn.Module, kind: str, place: float = 0.5, given: str = "") -> str:
    """The name of the linear of that `kind` (see `KINDS`) in the block at `place`; `given`, where it is not empty.

    Raises ValueError for a kind that is none, and for a given name that is no linear of a block.
    """
    path, index = blocks.path_of_blocks(model), block(model, place)
    if given:
        names = [f"{path}.{i}.{name}" for i, each in enumerate(blocks.blocks(model)) for name in blocks.linears(each)]
        if given not in names:
            raise ValueError(f"layer {given!r} is no linear of a block; {choices(given, names)}")
        return given
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; {choices(kind, KINDS)}")
    found = blocks.linears(blocks.blocks(model)[index])
    attention = [name for name in found if "attn" in name.lower() or "attention" in name.lower()]
    rest = [name for name in found if name not in attention]
    reading = [name for name in rest if name != rest[-1]] or rest
    ends = [name for name in attention if name.rpartition(".")[2] in OUTPUTS] or attention[-1:]
    first = [name for name in attention if name not in ends] or attention
    chosen = {"query": first[:1], "output": ends[-1:], "up": reading[-1:], "down": rest[-1:]}[kind]
    return f"{path}.{index}.{(chosen or list(found))[0]}"


def block_of(model: nn.Module, name: str) -> int | None:
    """The index of the block in which the layer `name` lies; None for embedding, head and others outside of blocks."""
    path = f"{blocks.path_of_blocks(model)}."
    return int(name.removeprefix(path).partition(".")[0]) if name.startswith(path) else None
