"""What a packed model consists of, and how to get it out of a model; `checkpoint.py` gets it from a folder."""

from dataclasses import dataclass, field

import numpy as np

from lib.decoding import ends
from lib.runtime.pack import Packed

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model types whose blocks are those of `cpu.cpp`
LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {
    "first_norm": "input_layernorm",
    "second_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}


@dataclass
class Weights:
    """A model of the Llama family, packed.

    layers: per block, by the names of `LINEARS`, (packed matrix, bias float32 or None), and by those of `NORMS` the
    norm's weight (float32, absent where the family has none). frequencies: of the rotary embedding, float32
    [head size / 2]; rotary_scale: what its cosines and sines are multiplied with. limit: positions of the context.
    stops: token ids that end a text. tokenizer: anything with `encode` and `decode`.
    """

    hidden: int
    heads: int
    key_heads: int
    size: int
    intermediate: int
    eps: float
    limit: int
    frequencies: np.ndarray
    rotary_scale: float
    layers: list[dict]
    norm: np.ndarray
    embedding: Packed
    head: Packed
    head_bias: np.ndarray | None = None
    stops: tuple[int, ...] = ()
    tokenizer: object = None
    generation_config: object = None  # the checkpoint's, a dict or transformers' own: see `decoding.settings`
    backends: dict = field(default_factory=dict, repr=False)  # what engine.py has prepared for these weights

    @property
    def vocabulary(self) -> int:
        """Rows of the head: how many logits a position has."""
        return self.head.rows

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        return self.head.data is self.embedding.data

    def matrices(self) -> list[Packed]:
        """Every packed matrix, a tied one once."""
        found = [layer[name][0] for layer in self.layers for name in LINEARS] + [self.head]
        return found if self.tied else [*found, self.embedding]

    @property
    def nbytes(self) -> int:
        """Bytes of all packed matrices and norms."""
        norms = sum(layer[name].nbytes for layer in self.layers for name in NORMS if name in layer)
        return sum(matrix.data.nbytes for matrix in self.matrices()) + norms + self.norm.nbytes

    def bytes_per_token(self, context: int = 0) -> int:
        """Bytes that a decoding step at batch 1 reads: all matrices, keys and values of `context` positions.

        An embedding of its own counts as one row, which touches every line of one tile.
        """
        total = self.nbytes - (0 if self.tied else self.embedding.data.nbytes)
        return total + 4 * len(self.layers) * self.key_heads * self.size * context


def unsupported(config) -> str | None:
    """The part of a model (its configuration) that the engine does not compute; None when it computes all of it."""
    kind = config.model_type
    if kind not in FAMILIES:
        return f"model type {kind!r} (of the families {', '.join(FAMILIES)})"
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        return f"activation {config.hidden_act!r}"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % 16:
        return f"heads of size {size}, no multiple of 16"
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or []) or kind == "mistral"
    if window and sliding and window < config.max_position_embeddings:
        return f"sliding-window attention ({window} of {config.max_position_embeddings} positions)"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return f"rotary embedding {rope['rope_type']!r}, which changes with the length"
    return None


def from_model(model) -> Weights:
    """The weights of a model that `pack_` has packed, sharing their memory.

    Raises ValueError with the part that is not supported; such a model runs through its own `generate`.
    """
    from lib.models import blocks
    from lib.runtime.modules import PackedEmbedding, PackedLinear

    config = blocks.config(model)
    refuse(unsupported(config), type(model).__name__)
    table, head, layers = blocks.embeddings(model), blocks.head(model), []
    for index, block in enumerate(blocks.blocks(model)):
        found = {name: block.get_submodule(path) for name, path in LINEARS.items()}
        other = [LINEARS[name] for name, part in found.items() if not isinstance(part, PackedLinear)]
        refuse(f"{other[0]} of block {index}, which is not packed" if other else None, type(model).__name__)
        layer = {name: (part.packed, part.bias_array) for name, part in found.items()}
        present = dict(block.named_modules())
        layers.append(layer | {name: array(present[path].weight) for name, path in NORMS.items() if path in present})
    if not isinstance(table, PackedEmbedding) or not isinstance(head, PackedLinear):
        refuse("an embedding or head that is not packed (use runtime.pack_)", type(model).__name__)
    rotary = blocks.decoder(model).rotary_emb
    return Weights(
        **shape(config), layers=layers, norm=array(blocks.final_norm(model).weight),
        frequencies=array(rotary.inv_freq), rotary_scale=float(rotary.attention_scaling),
        embedding=table.packed, head=head.packed, head_bias=head.bias_array,
        stops=ends.of_model(model), tokenizer=getattr(model, "tokenizer", None),
        generation_config=getattr(model, "generation_config", None),
    )  # fmt: skip


def check_bits(bits: int | None) -> None:
    """Raise ValueError for bits that an embedding or head can't be rounded to."""
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8):
        raise ValueError(f"embedding_bits={bits!r}; choose 2 to 8, or None for 16-bit embeddings.")


def shape(config) -> dict:
    """The sizes that `Weights` has, of a configuration."""
    heads = config.num_attention_heads
    return {
        "hidden": config.hidden_size,
        "heads": heads,
        "key_heads": getattr(config, "num_key_value_heads", None) or heads,
        "size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "intermediate": config.intermediate_size,
        "eps": config.rms_norm_eps,
        "limit": config.max_position_embeddings,
    }


def refuse(part: str | None, model: str) -> None:
    """Raise ValueError for a part that the engine does not compute."""
    if part:
        raise ValueError(
            f"{model} has {part}; the packed engine computes Llama, Mistral, Qwen2 and Qwen3 with full attention; "
            "run this model with its own generate."
        )


def array(tensor) -> np.ndarray:
    """A float32 array of its own."""
    return np.array(tensor.detach().float().cpu().numpy(), np.float32)
