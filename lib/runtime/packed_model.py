"""The weights of a model whose layers `pack_` has packed, as the engine takes them."""

import numpy as np

from lib.decoding import ends
from lib.models import blocks
from lib.runtime import fused
from lib.runtime.agreement import architecture_of
from lib.runtime.architecture import Architecture, refuse
from lib.runtime.modules import PackedEmbedding, PackedLinear
from lib.runtime.rope_frequencies import Rotation
from lib.runtime.weights import Weights, array


def from_model(model) -> Weights:
    """The weights of a model that `pack_` has packed, sharing their memory.

    Raises ValueError with the part that is not supported; such a model runs through its own `generate`.
    """

    found, name = architecture_of(model), type(model).__name__
    table, head, layers = blocks.embeddings(model), blocks.head(model), []
    for index, block in enumerate(blocks.blocks(model)):
        layer = {}
        for path in found.modules():
            part = block.get_submodule(path)
            other = None if isinstance(part, PackedLinear) else f"{path} of block {index}, which is not packed"
            refuse(other, name)
            layer |= fused.parts(found, path, part.packed, part.bias_array)
        for each, path in found.norms.items():
            layer[each] = array(block.get_submodule(path).weight) + np.float32(found.offset)
        layers.append(layer)
    if not isinstance(table, PackedEmbedding) or not isinstance(head, PackedLinear):
        refuse("an embedding or head that is not packed (use runtime.pack_)", name)
    rotary, factor = blocks.decoder(model).rotary_emb, table.scale
    return Weights(
        found, layers=layers, norm=array(blocks.final_norm(model).weight) + np.float32(found.offset),
        rotations=_rotations(rotary, found), embedding_scale=factor,
        embedding=table.packed, head=head.packed, head_bias=head.bias_array,
        stops=ends.of_model(model), tokenizer=getattr(model, "tokenizer", None),
        generation_config=getattr(model, "generation_config", None),
    )  # fmt: skip


def _rotations(rotary, wanted: Architecture) -> list[Rotation]:
    """The rotary embeddings of a model's module, one for each kind of attention where it has several."""
    prefixes = [""] if [*wanted.rotations] == ["every"] else [f"{kind}_" for kind in wanted.rotations]
    return [
        Rotation(array(getattr(rotary, f"{each}inv_freq")), float(getattr(rotary, f"{each}attention_scaling")))
        for each in prefixes
    ]
