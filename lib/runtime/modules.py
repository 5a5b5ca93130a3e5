"""Packed stand-ins for linear layers and embeddings, and `pack_`, which puts them into a model."""

import numpy as np
import torch
from torch import Tensor, nn

from lib import checkpoints
from lib.models import blocks
from lib.quantized.grid import Quantized, check_size, choose, quantize
from lib.quantized.quant_embedding import factor_of
from lib.runtime import cpu, pack, torch_kernels
from lib.runtime.agreement import architecture_of
from lib.runtime.aligned import zeros
from lib.runtime.pack import Packed
from lib.runtime.weights import check_bits

# Rows of inputs from which weights are dequantized for the library's product, where the CPU has no AVX-512 VNNI: there
# the kernels read the weights anew every 4 rows. With VNNI they do so every 24, faster than bfloat16 (see engine.py).
MANY = 32


class PackedLinear(nn.Module):
    """y = x Wᵀ + bias with packed W [out_features, in_features]; inputs are rounded to int8, a scale a block.

    On CPUs without AVX-512 VNNI, many rows at once are multiplied with bfloat16 tiles of dequantized weights by torch's
    own product; elsewhere the packed kernels are faster for them too.
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None):
        super().__init__()
        self.packed, self.out_features, self.in_features = packed, packed.rows, packed.columns
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.bias_array = None if bias is None else np.array(bias.detach().float().cpu().numpy())

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `inputs` [..., in_features] to [..., out_features], in the dtype of `inputs`; no gradients.

        Raises ValueError for inputs of another width.
        """
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        if len(rows) >= MANY and cpu.instruction_set() != "avx512":
            found = dequantized_product(self.packed, rows, self.bias)
        else:
            found = product(self.packed, rows.float(), self.bias_array)
        return found.reshape(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def extra_repr(self) -> str:
        """Shape and grid, as `print(model)` shows them."""
        return f"{self.in_features}, {self.out_features}, bits={self.packed.bits}, group_size={self.packed.group_size}"


class PackedEmbedding(nn.Module):
    """Rows of a packed matrix [num_embeddings, embedding_dim] by token id, in type `dtype`, times `factor`."""

    def __init__(self, packed: Packed, *, padding_idx=None, factor=None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.packed, self.num_embeddings, self.embedding_dim = packed, packed.rows, packed.columns
        self.padding_idx, self.factor = padding_idx, factor
        # without elements: it follows the casts of a model's parameters, and so the type of the rows does
        self.type_of_rows = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., embedding_dim] of token `ids` [...]."""
        unique, places = ids.reshape(-1).unique(return_inverse=True)
        found = torch.stack([torch_kernels.rows(self.packed, int(one), int(one) + 1)[0] for one in unique])
        values = found[places].reshape(*ids.shape, -1).to(self.type_of_rows.dtype)
        return values if self.factor is None else values * self.scale

    @property
    def scale(self) -> float:
        """The factor of the rows: a tensor is rounded to the type of the rows first, as in transformers."""
        factor = 1.0 if self.factor is None else self.factor
        return float(factor.to(self.type_of_rows.dtype)) if isinstance(factor, Tensor) else float(factor)


def product(packed: Packed, rows: Tensor, bias: np.ndarray | None = None) -> Tensor:
    """float32 [n, rows of the matrix]: by the compiled kernels, or by plain torch where there are none."""
    if cpu.library() is None:
        return torch_kernels.product(packed, rows, bias)
    return torch.from_numpy(cpu.product(packed, rows.numpy(), bias))


def dequantized_product(packed: Packed, rows: Tensor, bias: Tensor | None, tile: int = 2048) -> Tensor:
    """The library's bfloat16 product with `tile` dequantized rows of the matrix at a time; inputs are not rounded."""
    pack.check_inputs(packed, rows.shape)
    rows, parts = rows.to(torch.bfloat16), []
    for first in range(0, packed.rows, tile):
        last = min(first + tile, packed.rows)
        weight = torch_kernels.rows(packed, first, last).to(torch.bfloat16)
        own = None if bias is None else bias[first:last].to(torch.bfloat16)
        parts.append(nn.functional.linear(rows, weight, own))
    return torch.cat(parts, 1)


@torch.no_grad()
def pack_(model: nn.Module, *, embedding_bits: int | None = 8) -> nn.Module:
    """Pack every linear layer of `model`, its embedding and its head, in place; the one switch to the packed runtime.

    Quantized layers keep their codes and grids, plain ones become bfloat16. An embedding or head that is not
    quantized gets `embedding_bits` (groups of 64, symmetric, to nearest), or bfloat16 with None. The model keeps
    working through its own `generate`; `runtime.generate` and `Session` run it in one call a step. It can't be saved
    any more. Layers that the layout can't hold are not changed, and a printed line names them. Raises ValueError,
    before the work, for models that aren't on the CPU, and for NaN and infinity in their weights.
    """
    if blocks.device(model).type != "cpu":
        raise ValueError(f"the model is on {blocks.device(model)}; packed kernels run on the CPU; move it there first.")
    check_bits(embedding_bits)
    checkpoints.finite(model)
    refused, table, head = {}, blocks.embeddings(model), blocks.head(model)
    for name, layer in blocks.linears(model).items():
        if layer is head:
            continue
        try:
            packed = _packed(layer, None, name)
        except ValueError as error:
            refused[name] = str(error)
            continue
        model.set_submodule(name, PackedLinear(packed, layer.bias))
    _pack_ends(model, table, head, embedding_bits, refused)
    model.save_pretrained = _no_saving
    for name, reason in list(refused.items())[:1]:
        print(f"runtime: {len(refused)} layers stay unpacked, {name} first: {reason}")
    try:
        architecture_of(model)
    except ValueError as error:
        print(f"runtime: {error} Its packed layers run there.")
    return model


def _pack_ends(model, table, head, bits, refused) -> None:
    """Pack embedding and head, as one matrix where they are tied."""
    tied, names = blocks.tied(model), [blocks.path_of(model, part) for part in (table, head)]
    try:
        factor = factor_of(table) if isinstance(table, nn.Embedding) else table.factor
        packed = _packed(head, bits, names[1])
        first = packed if tied else _packed(table, bits, names[0])
    except ValueError as error:
        refused[names[0]] = str(error)
        return
    kind = table.weight.dtype if isinstance(table, nn.Embedding) else table.type_of_rows.dtype
    model.set_submodule(names[0], PackedEmbedding(first, padding_idx=table.padding_idx, factor=factor, dtype=kind))
    model.set_submodule(names[1], PackedLinear(packed, getattr(head, "bias", None)))
    model.all_tied_weights_keys, model._tied_weights_keys = {}, {}


def _packed(layer: nn.Module, bits: int | None, name: str) -> Packed:
    """The packed matrix of a quantized or plain layer; plain ones are rounded to `bits`, None for bfloat16."""
    if blocks.is_quantized(layer):
        return pack.pack(layer.quantized, name=name)
    weight = layer.weight.detach()
    if bits is None:
        return pack.pack_plain(weight, name)
    check_size(name, weight)
    return round_and_pack(weight, bits)


def round_and_pack(weight: Tensor, bits: int, rows: int = 2048) -> Packed:
    """A plain matrix on a symmetric grid of `bits` (groups of 64, or of 32, or a row), `rows` rows at a time."""
    count, columns = weight.shape
    group = next((size for size in (64, 32) if columns % size == 0), columns)
    data = zeros(pack.size(count, columns, bits=bits, group_size=group))
    tile = sum(pack.tile_bytes(columns, bits, group, True))
    for first in range(0, count, rows):
        some = weight[first : first + rows]
        scale, _ = choose(some, bits=bits, group_size=group, symmetric=True)
        part = Quantized(quantize(some, scale, None, bits=bits), scale, None, bits, group)
        start, tiles = first // pack.TILE * tile, -(-len(part.codes) // pack.TILE)
        pack.pack(part, data[start : start + tiles * tile])
    return Packed(data, count, columns, bits, group)


def _no_saving(*args, **kwargs):
    raise ValueError(
        "this model is packed for running; checkpoints hold unpacked codes; save it before pack_, or load it again."
    )
