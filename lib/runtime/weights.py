"""The weights of a packed model, and how to get them from a model; `checkpoint.py` reads them from a folder.

In both cases `Weights` compares every array with the architecture before native code may read it.
"""

from dataclasses import dataclass, field

import numpy as np

from lib.runtime import cache_codes, pack
from lib.runtime.architecture import Architecture
from lib.runtime.families import NORMS
from lib.runtime.pack import Packed
from lib.runtime.rope_frequencies import Rotation


@dataclass
class Weights:
    """A packed model.

    layers: per block, by the names of the architecture's `linears`, (packed matrix, bias float32 or None), and by those
    of `NORMS` the norm's weight (float32, its offset added, absent where the family has none). embedding_scale: factor
    of the embeddings. rotations: the rotary embeddings of the architecture.
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
    embedding_scale: float = 1.0
    stops: tuple[int, ...] = ()
    tokenizer: object = None
    generation_config: object = (
        None  # the checkpoint's generation settings, a dict or transformers' own: see `decoding.settings`
    )
    backends: dict = field(default_factory=dict, repr=False)  # prepared by engine.py for these weights

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
        found = [layer[name][0] for layer in self.layers for name in self.architecture.linears] + [self.head]
        return found if self.tied else [*found, self.embedding]

    @property
    def nbytes(self) -> int:
        """Bytes of all packed matrices and norms."""
        norms = sum(layer[name].nbytes for layer in self.layers for name in NORMS if name in layer)
        return sum(matrix.data.nbytes for matrix in self.matrices()) + norms + self.norm.nbytes

    def bytes_per_token(self, context: int = 0, cache_bits: int = 16) -> int:
        """Bytes that a decoding step at batch 1 reads: all matrices, keys and values of `context` positions.

        An embedding of its own counts as one row, which touches every line of one tile.
        """
        total = self.nbytes - (0 if self.tied else self.embedding.data.nbytes)
        seen = sum(min(context, window or context) for window in self.architecture.windows)
        position = cache_codes.bytes_a_position(self.architecture, cache_bits) // self.architecture.blocks
        return total + seen * position


def check(weights: Weights) -> None:
    """Raise ValueError for the first array that is not as large as the architecture says, or of another type."""
    a = weights.architecture
    _same("blocks", len(weights.layers), a.blocks)
    _same("windows", len(a.windows), a.blocks)
    _same("rotary embeddings", len(weights.rotations), len(a.rotations))
    _same("rotary embeddings of blocks", [each in range(len(a.rotations)) for each in a.rotation], [True] * a.blocks)
    for rotation in weights.rotations:
        _floats("the rotary frequencies", rotation.frequencies, a.rotated // 2)
    for index, layer in enumerate(weights.layers):
        _same(f"parts of block {index}", sorted(layer), sorted((*a.linears, *a.norms)))
        for name, path in a.linears.items():
            matrix, bias = layer[name]
            _matrix(f"{path} of block {index}", matrix, a.shape(name))
            if bias is not None:
                _floats(f"the bias of {path} in block {index}", bias, matrix.rows)
        for name, path in a.norms.items():
            _floats(f"{path} of block {index}", layer[name], a.width(name))
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
        for name, path in (weights.architecture.linears | weights.architecture.norms).items():
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
    grid = {"bits": found.bits, "group_size": found.group_size, "symmetric": found.symmetric, "levels": found.levels}
    _same(f"bytes of {name}", found.data.nbytes, pack.size(*shape, **grid))
    _same(f"layout of {name}", (str(found.data.dtype), found.data.flags.c_contiguous), ("uint8", True))


def check_bits(bits: int | None) -> None:
    """Raise ValueError for bits that an embedding or head can't be rounded to."""
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8):
        raise ValueError(f"embedding_bits={bits!r}; choose 2 to 8, or None for 16-bit embeddings.")


def array(tensor) -> np.ndarray:
    """A float32 array of its own."""
    return np.array(tensor.detach().float().cpu().numpy(), np.float32)
