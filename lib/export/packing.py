"""One quantized matrix as the tensors of the compressed-tensors convention `pack-quantized`, and back.

For a matrix of shape [rows, columns] with `bits` bits a code, the convention stores

    weight_packed       int32 [rows, ceil(columns * bits / 32)]   the codes of a row, one after the other
    weight_scale        float [rows, groups]
    weight_zero_point   int32 [ceil(rows * bits / 32), groups]    packed down the rows; absent when symmetric
    weight_shape        int64 [2]                                 rows and columns

Code i of a row occupies the bits i * bits to (i + 1) * bits - 1 of that row, counted from the least significant bit
of the first int32. Nothing is padded: a 3-bit code may begin in one int32 and end in the next. (Releases of the
package before this layout put 10 codes of 3 bits into an int32; such files have other shapes and are refused.)

The convention names codes as signed numbers, q - 2**(bits - 1), and packs them with the offset added back, so the
packed bits are our unsigned codes; the zero point is shifted the same way and value = scale * (q - zero_point) holds.

Grids with half-integer or balanced levels are packed alike: a zero point that may be a half is stored as the number of
`bits` bits that `quantized.levels` gives it, one that all groups share is not stored. Only our loader reads them
(`quantized.integers` turns them into grids that others read). So are grids with a codebook. The convention doesn't know
them, so only our loader reads them, from one tensor more: weight_codebook, float32 [2**bits], value = scale *
codebook[q] (shared ones: see `groups.codebooks`). Pairs (`quantized.pairs`) have the numbers of their books in place of
zero points, and weight_codebook, int8 [4, 16, 2]."""

import math

import torch
from torch import Tensor

from lib.quantized import pairs, zero_points
from lib.quantized.grid import Quantized, fitted
from lib.quantized.levels import check as check_levels
from lib.quantized.levels import stored

NAMES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_codebook")
ROWS = 8192  # rows that are packed or unpacked at once: it takes a dozen bytes a code


def pack(quantized: Quantized, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The stored tensors of `quantized`, named as above, but for its codebook.

    A scale that is exact in bfloat16 is stored so when `dtype`, the model's type, is bfloat16, otherwise in float32:
    a reader then multiplies exactly, rounds once to the model's type, and gets the values that `QuantLinear` computes.
    """
    from compressed_tensors.compressors.pack_quantized import pack_to_int32  # loads slowly, only to save

    codes, scale, zero, bits = quantized[:4]
    zero = zero_points.stored(zero, bits=bits, levels=quantized.levels)
    tensors = {
        "weight_packed": torch.cat([pack_to_int32(_signed(part, bits), bits) for part in codes.split(ROWS)]),
        "weight_scale": scale.to(_type_of_scale(scale, dtype)).contiguous(),
        "weight_shape": torch.tensor(codes.shape),
    }
    if zero is not None:
        tensors["weight_zero_point"] = pack_to_int32(_signed(zero, bits), bits, packed_dim=0)
    return tensors


def outline(quantized: Quantized, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The tensors that `pack` stores, with equal type and shape, on the meta device: nothing is packed."""
    (rows, columns), (_, groups) = quantized.codes.shape, quantized.scale.shape
    tensors = {
        "weight_packed": _meta(torch.int32, rows, math.ceil(columns * quantized.bits / 32)),
        "weight_scale": _meta(_type_of_scale(quantized.scale, dtype), rows, groups),
        "weight_shape": _meta(torch.int64, 2),
    }
    if quantized.zero_point is not None and stored(quantized.bits, quantized.levels).step:
        tensors["weight_zero_point"] = _meta(torch.int32, math.ceil(rows * quantized.bits / 32), groups)
    return tensors


def planned(
    rows: int,
    columns: int,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    codebook: Tensor | None = None,
) -> Quantized:
    """A matrix on that grid without numbers (meta device), to compute sizes before anything is quantized."""
    size = fitted(columns, bits=bits, group_size=group_size)
    if levels == pairs.LEVELS:
        pairs.check(bits, size, columns)
        codebook = torch.empty(pairs.SHAPE, dtype=torch.int8, device="meta")
    else:
        check_levels(levels, symmetric)
    groups, affine = columns // size, not symmetric and (codebook is None or levels == pairs.LEVELS)
    zero = zero_points.typed(_meta(torch.uint8, rows, groups), levels) if affine else None
    codes, scale = _meta(torch.uint8, rows, columns), _meta(torch.bfloat16, rows, groups)
    return Quantized(codes, scale, zero, bits, size, codebook, levels)


def size(quantized: Quantized, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes that `pack` makes of `quantized` in a model of type `dtype`."""
    return sum(tensor.nbytes for tensor in outline(quantized, dtype).values())


def unpack(
    tensors: dict[str, Tensor],
    *,
    bits: int,
    groups: int,
    symmetric: bool,
    name: str,
    levels: str = "integer",
    codebook: Tensor | None = None,
) -> Quantized:
    """The matrix that `pack` stored, with `groups` groups a row; `name` is the layer's, for errors.

    Raises ValueError when the tensors have other names, types or shapes than the layout above.
    """
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32  # loads slowly, only to read

    shape = torch.Size(tensors["weight_shape"].tolist()) if "weight_shape" in tensors else torch.Size((0, 0))
    has_zeros = not symmetric and bool(stored(bits, levels).step)
    _check(tensors, shape, bits, groups, not has_zeros, name)
    rows = tensors["weight_packed"].split(ROWS)
    codes = torch.cat([_unsigned(unpack_from_int32(part, bits, (len(part), shape[1])), bits) for part in rows])
    zero = None
    if has_zeros:
        # transposed here: the package's own packed_dim=0 fails on a single int32 of 4-bit zero points
        words = tensors["weight_zero_point"].T.clone(memory_format=torch.contiguous_format)
        zero = _unsigned(unpack_from_int32(words, bits, torch.Size((groups, shape[0]))), bits).T.contiguous()
    scale = tensors["weight_scale"]
    scale = scale.to(_type_of_scale(scale, torch.bfloat16), copy=True)
    zero = zero_points.restored(zero, scale, bits=bits, levels=levels)
    return Quantized(codes, scale, zero, bits, shape[1] // groups, codebook, levels)


def _type_of_scale(scale: Tensor, dtype: torch.dtype) -> torch.dtype:
    """bfloat16 where that is exact and the model's own type; float32 otherwise."""
    if dtype != torch.bfloat16:
        return torch.float32
    exact = scale.dtype == torch.bfloat16 or torch.equal(scale.to(torch.bfloat16).double(), scale.double())
    return torch.bfloat16 if exact else torch.float32


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _signed(codes: Tensor, bits: int) -> Tensor:
    """codes - 2**(bits - 1) as int8 (unsigned subtraction wraps around to the two's complement)."""
    return codes.sub(2 ** (bits - 1)).view(torch.int8)


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    return codes.contiguous().view(torch.uint8).add(2 ** (bits - 1))


def _check(tensors, shape, bits, groups, symmetric, name):
    rows, columns = shape if len(shape) == 2 else (0, 0)
    wanted = {
        "weight_packed": (torch.int32, [rows, math.ceil(columns * bits / 32)]),
        "weight_scale": (None, [rows, groups]),
        "weight_shape": (torch.int64, [2]),
    }
    if not symmetric:
        wanted["weight_zero_point"] = (torch.int32, [math.ceil(rows * bits / 32), groups])
    names = sorted(tensors.keys() & set(NAMES))
    if names != sorted(wanted):
        raise ValueError(
            f"{name} is stored as {', '.join(names)}; {'a symmetric' if symmetric else 'an asymmetric'} pack-quantized "
            f"layer has {', '.join(sorted(wanted))}; export it again with compressed_tensors.save."
        )
    for key, (dtype, dimensions) in wanted.items():
        found = tensors[key]
        kind = dtype or (found.dtype if found.is_floating_point() else torch.bfloat16)
        if found.dtype != kind or list(found.shape) != dimensions or columns % groups:
            raise ValueError(
                f"{key} of {name} is {found.dtype} {list(found.shape)}; {bits} bits and {groups} groups a row over "
                f"{rows} x {columns} weights ask for {kind} {dimensions}; export it again with compressed-tensors 0.20."
            )
