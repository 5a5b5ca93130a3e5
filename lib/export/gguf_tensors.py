"""The tensors of a GGUF file: which there are, in llama.cpp's order of rows, and their bytes."""

from collections.abc import Iterator
from typing import NamedTuple

import gguf
import numpy
import torch
from torch import Tensor, nn

from lib.export import gguf_blocks, gguf_metadata, stored_tensors
from lib.models import blocks
from lib.quantized.gguf_types import TYPES, Blocks
from lib.quantized.grid import Quantized

PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_LATER = {"Q2_0": 42}  # types that llama.cpp reads and the `gguf` package (0.19.0) has no name for: their numbers
_FILES = {"Q2_0": 41, "MXFP4": 38}  # numbers of files that are mostly of such a type


class Part(NamedTuple):
    """A tensor of the file: its name there and in the model, its type, bytes, and the largest absolute error."""

    name: str
    source: str
    kind: str
    nbytes: int
    error: float


def number(kind: str) -> gguf.GGMLQuantizationType:
    """The package's member for a type's name; one that it lacks is made known to it, with the size of its blocks."""
    if kind in _LATER and kind not in gguf.GGMLQuantizationType.__members__:
        made = int.__new__(gguf.GGMLQuantizationType, _LATER[kind])
        made._name_, made._value_ = kind, _LATER[kind]
        gguf.GGMLQuantizationType._member_map_[kind] = made
        gguf.GGMLQuantizationType._value2member_map_[made._value_] = made
        gguf.GGML_QUANT_SIZES[made] = TYPES[kind].block, TYPES[kind].nbytes
    return gguf.GGMLQuantizationType[kind]


def dequantized(data: numpy.ndarray, kind: str) -> Tensor:
    """Float32 values of the bytes of a tensor: by the `gguf` package, or by us for a type that it does not know."""
    if kind in _LATER:
        return Blocks(kind, torch.from_numpy(data.copy())).dense()
    return torch.from_numpy(gguf.quants.dequantize(data, number(kind)).copy())


def reader(file) -> gguf.GGUFReader:
    """The package's reader of `file`, which knows all types that are written here."""
    for kind in _LATER:
        number(kind)
    return gguf.GGUFReader(file)


def values(
    model: nn.Module, aimed: dict[str, Blocks] | None = None
) -> Iterator[tuple[str, Quantized | Blocks | Tensor]]:
    """(name, matrix or tensor) of all that the file holds, rows in llama.cpp's order; a tied matrix comes once.

    aimed: matrices that are on a grid of the file already, by the names of their layers.
    """
    matrices, replaced = stored_tensors.stored(model)
    head = blocks.path_of(model, blocks.head(model))
    skipped = {head} if blocks.alike(model) else set()
    state = {f"{name}.weight": matrix for name, matrix in matrices.items()}
    state |= {
        key: tensor
        for key, tensor in model.state_dict().items()
        if key.rpartition(".")[0] not in replaced or key.endswith(".bias")
    }
    state |= {f"{name}.weight": matrix for name, matrix in (aimed or {}).items()}
    for key, value in state.items():
        if key.rpartition(".")[0] not in skipped:
            yield key, _ordered(model, key, value)
    if (factors := gguf_metadata.factors(model)) is not None:
        yield "rope_freqs.weight", factors


def _ordered(model, name: str, value):
    rows = len(_numbers(value))
    order = gguf_metadata.row_order(model, name, rows)
    if isinstance(value, Blocks):
        return value if order is None else value._replace(data=value.data[order])
    if isinstance(value, Quantized):
        value = value._replace(
            **{
                part: each.cpu()
                for part in ("codes", "scale", "zero_point")
                if (each := getattr(value, part)) is not None
            }
        )
        if order is None:
            return value
        zero = None if value.zero_point is None else value.zero_point[order]
        return value._replace(codes=value.codes[order], scale=value.scale[order], zero_point=zero)
    value = value.detach().cpu()
    return value if order is None else value[order]


def write(writer, model, parts: list[Part], aimed: dict[str, Blocks] | None = None) -> None:
    """Write header and tensors, one after another: no second copy of the model is held."""
    shapes = {name: shape(value) for name, value in values(model, aimed)}
    for part in parts:
        raw = number(part.kind)
        writer.add_tensor_info(part.name, shapes[part.source], numpy.dtype(numpy.float32), part.nbytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for part, (name, value) in zip(parts, values(model, aimed), strict=True):
        writer.write_tensor_data(_bytes(model, part, name, value))


def _bytes(model, part: Part, name: str, value) -> numpy.ndarray:
    if isinstance(value, Blocks):
        return value.data.numpy()
    if part.kind in gguf_blocks.KINDS:
        return gguf_blocks.pack(gguf_blocks.levels(value), part.kind)
    if isinstance(value, Quantized):
        value = value.dense()
    if value.ndim == 1:
        value = gguf_metadata.vector(model, name, value)
    return value.to(PLAIN[part.kind]).contiguous().view(torch.uint8).numpy()


def file_type(parts: list[Part]) -> int:
    """The type of most weights, as llama.cpp names files."""
    sizes = {}
    for part in parts:
        sizes[part.kind] = sizes.get(part.kind, 0) + part.nbytes
    most = max(sizes, key=sizes.get)
    if most == "F32":
        return int(gguf.LlamaFileType.ALL_F32)
    name = f"MOSTLY_{most}" + ("_S" if most in ("Q3_K", "Q4_K", "Q5_K") else "")
    return _FILES[most] if most in _FILES else int(gguf.LlamaFileType[name])


def _numbers(value) -> Tensor:
    return value.codes if isinstance(value, Quantized) else value.data if isinstance(value, Blocks) else value


def shape(value: Quantized | Blocks | Tensor) -> tuple[int, ...]:
    """The shape of the tensor that `value` stands for."""
    rows, *rest = _numbers(value).shape
    if isinstance(value, Blocks):
        kind = TYPES[value.kind]
        return rows, rest[0] // kind.nbytes * kind.block
    return rows, *rest
