"""QuantEmbedding: an embedding that stores integer codes and grids, as `QuantLinear` does for linear layers."""

import torch
from torch import Tensor, nn

from lib.quantized.grid import PARTS, Quantized
from lib.quantized.linear import QuantizedModule, QuantLinear


class QuantEmbedding(QuantizedModule):
    """Rows of scale · (codes - zero_point), of shape [num_embeddings, embedding_dim], by token id.

    Only the rows of the given ids are dequantized. The buffers are those of `QuantLinear`; in a tied model they are
    the same tensors as the head's. padding_idx: as in `nn.Embedding`. factor: multiplied with the rows (Gemma: the
    root of the hidden size), None for nothing. dtype: type of the rows.
    """

    stands_for = nn.Embedding

    def __init__(self, quantized: Quantized, *, padding_idx=None, factor=None, dtype: torch.dtype = torch.float32):
        super().__init__(quantized)
        self.num_embeddings, self.embedding_dim = quantized.codes.shape
        self.padding_idx = padding_idx
        # an empty buffer that follows the casts and moves of a model's parameters, and so gives the type of the rows
        self.type_of_rows = nn.Parameter(torch.empty(0, dtype=dtype, device=quantized.codes.device), False)
        if isinstance(factor, Tensor):
            self.register_buffer("factor", factor, persistent=False)
        else:
            self.factor = factor
        self._sharing: list[QuantLinear] = []  # the tied head; in a list, so that it is no submodule

    @classmethod
    def of(cls, embedding: nn.Embedding, quantized: Quantized) -> "QuantEmbedding":
        """Quantized replacement of `embedding`; ValueError for one that does more than look up rows and scale them."""
        factor = factor_of(embedding)
        return cls(quantized, padding_idx=embedding.padding_idx, factor=factor, dtype=embedding.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """Dequantized matrix [num_embeddings, embedding_dim] in the type of the rows; computed anew at each call."""
        return self.quantized.dense(self.type_of_rows.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., embedding_dim] of token `ids` [...]."""
        parts = {part: getattr(self, part) for part in PARTS if part != "codebook"}
        rows = {part: None if all_ is None else all_.index_select(0, ids.reshape(-1)) for part, all_ in parts.items()}
        values = self.quantized._replace(**rows).dense(self.type_of_rows.dtype)
        return _scaled(values.reshape(*ids.shape, self.embedding_dim), self.factor)

    def share_(self, head: QuantLinear) -> None:
        """Keep the buffers of `head` the same tensors as these, also after moves."""
        self._sharing = [head]
        for part in PARTS:
            setattr(head, part, getattr(self, part))
        head.forget()

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        for head in self._sharing:
            self.share_(head)
        return self

    def extra_repr(self) -> str:
        """Shape and grid, as `print(model)` shows them."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {super().extra_repr()}"


def _scaled(rows: Tensor, factor) -> Tensor:
    """`rows` times `factor` (a tensor is rounded to their type first, as transformers does it); None for nothing."""
    return rows if factor is None else rows * (factor.to(rows.dtype) if isinstance(factor, Tensor) else factor)


@torch.no_grad()
def factor_of(embedding: nn.Embedding):
    """The factor by which `embedding` multiplies its rows (None for none), found by trying it on a small table."""
    table = torch.linspace(-1, 1, 8 * embedding.embedding_dim).reshape(8, -1).to(embedding.weight)
    ids, factor = torch.arange(8, device=table.device), getattr(embedding, "embed_scale", None)
    rows = torch.func.functional_call(embedding, {"weight": table}, ids)
    if embedding.max_norm is not None or not torch.equal(rows, _scaled(table, factor)):
        raise ValueError(
            f"{type(embedding).__name__} does more than to look up rows and multiply them with embed_scale; that is "
            "all that a quantized embedding does; leave the embedding of this model as it is."
        )
    return factor
