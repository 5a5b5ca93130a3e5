"""What a packed model consists of, and how to get it out of a model; `checkpoint.py` gets it from a folder.

Whatever way they come, `Weights` compares every array with the architecture before native code may read it.
"""

from dataclasses import dataclass, field

import numpy as np

from lib.decoding import ends
from lib.runtime import architecture, pack
from lib.runtime.architecture import Architecture, refuse
from lib.runtime.families import FAMILIES, LINEARS, NORMS
from lib.runtime.pack import Packed
from lib.runtime.rotary import TABLES, Rotation, wrong


@dataclass
class Weights:
    """A packed model.

    layers: per block, by the names of `LINEARS`, (packed matrix, bias float32 or None), and by those of `NORMS` the
    norm's weight (float32, absent where the family has none). rotations: the rotary embeddings of the architecture.
    stops: token ids that end a text. tokenizer: anything with `encode` and `decode`.
    Raises ValueError for arrays that are not as large as the architecture says.
    """

    architecture: Architecture
    layers: list[dict]
    norm: np.ndarray
    rotations: list[Rotation]
    embedding: Packed
    head: Packed
    head_bias: np.ndarray | None = None
    stops: tuple[int, ...] = ()
    tokenizer: object = None
    generation_config: object = None  # the checkpoint's, a dict or transformers' own: see `decoding.settings`
    backends: dict = field(default_factory=dict, repr=False)  # what engine.py has prepared for these weights

    def __post_init__(self):
        check(self)
        check_numbers(self)

    @property
    def size(self) -> int:
        """Numbers in a head."""
        return self.architecture.size

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.architecture.key_heads

    @property
    def limit(self) -> int:
        """Positions of the context."""
        return self.architecture.limit

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


def check(weights: Weights) -> None:
    """Raise ValueError for the first array that is not as large as the architecture says, or of another type."""
    a = weights.architecture
    _same("blocks", len(weights.layers), a.blocks)
    _same("windows", len(a.windows), a.blocks)
    _same("rotary embeddings", len(weights.rotations), len(a.rotations))
    _same("rotary embeddings of blocks", [*map(range(len(a.rotations)).__contains__, a.rotation)], [True] * a.blocks)
    for rotation in weights.rotations:
        _floats("the rotary frequencies", rotation.frequencies, a.size // 2)
    for index, layer in enumerate(weights.layers):
        _same(f"parts of block {index}", sorted(layer), sorted((*LINEARS, *a.norms)))
        for name, path in LINEARS.items():
            matrix, bias = layer[name]
            _matrix(f"{path} of block {index}", matrix, a.shape(name))
            if bias is not None:
                _floats(f"the bias of {path} in block {index}", bias, matrix.rows)
        for name in a.norms:
            _floats(f"{NORMS[name]} of block {index}", layer[name], a.width(name))
    _floats("the final norm", weights.norm, a.hidden)
    for name, matrix in {"the embedding": weights.embedding, "the head": weights.head}.items():
        _matrix(name, matrix, (a.vocabulary, a.hidden))
    if weights.head_bias is not None:
        _floats("the bias of the head", weights.head_bias, a.vocabulary)


def check_numbers(weights: Weights) -> None:
    """Raise ValueError for norms, biases and rotary embeddings that hold NaN or infinity."""
    named = {"the final norm": weights.norm, "the bias of the head": weights.head_bias}
    for index, rotation in enumerate(weights.rotations):
        named[f"rotary embedding {index}"] = rotation.frequencies * np.float32(rotation.scale)
    for index, layer in enumerate(weights.layers):
        for name, path in (LINEARS | NORMS).items():
            part = layer.get(name)
            named[f"{path} of block {index}"] = part[1] if isinstance(part, tuple) else part
    for name, numbers in named.items():
        if numbers is not None and not np.isfinite(numbers).all():
            raise ValueError(f"{name} holds NaN or infinite values; all weights must be finite; take another copy.")


def _same(name: str, found, wanted) -> None:
    if found != wanted:
        raise ValueError(f"{name}: {found}, where the configuration asks for {wanted}; get an undamaged copy.")


def _floats(name: str, found: np.ndarray, count: int) -> None:
    """A float32 vector, laid out number after number."""
    layout = "" if found.flags.c_contiguous else ", in pieces"
    _same(name, f"{found.dtype} {list(found.shape)}{layout}", f"float32 [{count}]")


def _matrix(name: str, found: Packed, shape: tuple[int, int]) -> None:
    """A packed matrix of this shape, with as many bytes as its layout takes."""
    _same(name, [found.rows, found.columns], [*shape])
    pack.check(found.columns, found.group_size, name)
    if found.bits not in (*range(2, 9), pack.PLAIN) or found.group_size < 1:
        raise ValueError(f"{name} has {found.bits} bits in groups of {found.group_size}; pack it again.")
    grid = {"bits": found.bits, "group_size": found.group_size, "symmetric": found.symmetric}
    _same(f"bytes of {name}", found.data.nbytes, pack.size(*shape, **grid))
    _same(f"layout of {name}", (str(found.data.dtype), found.data.flags.c_contiguous), ("uint8", True))


def architecture_of(model) -> Architecture:
    """The architecture of a transformers model, as its configuration says and its modules compute it.

    Raises ValueError with the part that is not supported, or that is not what the configuration says.
    """
    from lib.models import blocks

    config = blocks.config(model).to_dict()
    if config.get("layer_types", ()) is None:  # a class fills it in when it is made, so it was taken out
        raise wrong("layer_types", None, "a type of attention for each block")
    found = architecture.read(config, tables={**TABLES, "yarn": ()})
    name, wanted = type(model).__name__, FAMILIES[found.family].model
    refuse(f"a class of its own, not {wanted}" if name != wanted else None, name)
    _agree(model, found, name)
    return found


def _agree(model, wanted: Architecture, name: str) -> None:
    """Refuse modules that compute something else than the configuration says, such as after an edit of it."""
    from lib.models import blocks

    modules = {"the final norm": blocks.final_norm(model)}
    for index, block in enumerate(blocks.blocks(model)):
        modules |= {f"{path} of block {index}": part for path, part in block.named_modules() if path}
    for place, part in modules.items():
        if hasattr(part, "variance_epsilon") or hasattr(part, "eps"):
            eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
            if np.float32(eps) != np.float32(wanted.eps):
                refuse(f"eps={eps!r} in {place}, where its configuration says {wanted.eps}", name)
        if hasattr(part, "scaling") and not np.isclose(part.scaling, wanted.query_scale, rtol=1e-6):
            refuse(f"attention scaled by {part.scaling} in {place}, where {wanted.query_scale} is expected", name)
        if not getattr(part, "is_causal", True):
            refuse(f"attention to later positions in {place}", name)
        if hasattr(part, "act_fn") and not _computes(part.act_fn, wanted.activation):
            refuse(f"another activation in {place} than its configuration says ({wanted.activation})", name)
        if part._forward_hooks or part._forward_pre_hooks:
            refuse(f"a hook on {place}", name)


def _computes(function, activation: str) -> bool:
    """Whether a module's activation is the one that goes by this name here."""
    import torch
    from torch.nn import functional

    wanted = {"silu": functional.silu}[activation]
    x = torch.linspace(-6, 6, 97)
    return torch.allclose(function(x), wanted(x), atol=1e-6)


def from_model(model) -> Weights:
    """The weights of a model that `pack_` has packed, sharing their memory.

    Raises ValueError with the part that is not supported; such a model runs through its own `generate`.
    """
    from lib.models import blocks
    from lib.runtime.modules import PackedEmbedding, PackedLinear

    found, name = architecture_of(model), type(model).__name__
    table, head, layers = blocks.embeddings(model), blocks.head(model), []
    for index, block in enumerate(blocks.blocks(model)):
        parts = {each: block.get_submodule(path) for each, path in LINEARS.items()}
        other = [LINEARS[each] for each, part in parts.items() if not isinstance(part, PackedLinear)]
        refuse(f"{other[0]} of block {index}, which is not packed" if other else None, name)
        layer = {each: (part.packed, part.bias_array) for each, part in parts.items()}
        present = dict(block.named_modules())
        layers.append(layer | {each: array(present[path].weight) for each, path in NORMS.items() if path in present})
    if not isinstance(table, PackedEmbedding) or not isinstance(head, PackedLinear):
        refuse("an embedding or head that is not packed (use runtime.pack_)", name)
    rotary = blocks.decoder(model).rotary_emb
    return Weights(
        found, layers=layers, norm=array(blocks.final_norm(model).weight),
        rotations=[Rotation(array(rotary.inv_freq), float(rotary.attention_scaling))],
        embedding=table.packed, head=head.packed, head_bias=head.bias_array,
        stops=ends.of_model(model), tokenizer=getattr(model, "tokenizer", None),
        generation_config=getattr(model, "generation_config", None),
    )  # fmt: skip


def check_bits(bits: int | None) -> None:
    """Raise ValueError for bits that an embedding or head can't be rounded to."""
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8):
        raise ValueError(f"embedding_bits={bits!r}; choose 2 to 8, or None for 16-bit embeddings.")


def array(tensor) -> np.ndarray:
    """A float32 array of its own."""
    return np.array(tensor.detach().float().cpu().numpy(), np.float32)
