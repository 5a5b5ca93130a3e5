"""From a checkpoint folder to packed weights, a matrix at a time: no dequantized copy, no torch, no transformers.

Reads what `export.compressed_tensors.save` wrote, and plain checkpoints in bfloat16, float16 or float32.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lib.decoding import ends, settings
from lib.runtime import pack
from lib.runtime.aligned import zeros
from lib.runtime.pack import Packed
from lib.runtime.weights import LINEARS, NORMS, Weights, check_bits, refuse, shape, unsupported

ROWS = 4096  # rows of a matrix that are read at once
_TYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I32": np.uint32, "I64": np.int64}


def load(folder: Path | str, *, embedding_bits: int | None = 8) -> Weights:
    """The packed weights of a model of the Llama family: `Session` and `generate` take them as they take a model.

    folder: a path, or the name of a folder in `checkpoints/`. embedding_bits: as for `pack_`.
    Raises FileNotFoundError or ValueError for folders that are broken, unsafe or not supported, and for other bits.
    """
    from lib import checkpoints, files

    check_bits(embedding_bits)
    folder = files.checkpoints() / folder if (files.checkpoints() / str(folder)).is_dir() else Path(folder)
    config = SimpleNamespace(**checkpoints.checkpoint(folder))
    kind = (getattr(config, "architectures", None) or ["the model"])[0]
    refuse(unsupported(config), kind)
    frequencies = rotary(config, kind)
    tensors = Tensors(checkpoints.weights(folder))
    layers = []
    for index in range(config.num_hidden_layers):
        block = f"model.layers.{index}."
        places = {name: block + path for name, path in LINEARS.items()}
        layer = {name: (tensors.matrix(at), tensors.floats(f"{at}.bias")) for name, at in places.items()}
        norms = {name: tensors.floats(f"{block}{path}.weight") for name, path in NORMS.items()}
        layers.append(layer | {name: weight for name, weight in norms.items() if weight is not None})
    table = tensors.matrix("model.embed_tokens", embedding_bits)
    own = any(key.startswith("lm_head.weight") for key in tensors.entries)
    return Weights(
        **shape(config), layers=layers, norm=tensors.floats("model.norm.weight"), frequencies=frequencies,
        rotary_scale=1.0, embedding=table, head=tensors.matrix("lm_head", embedding_bits) if own else table,
        head_bias=tensors.floats("lm_head.bias"), stops=ends.of_folder(folder), tokenizer=Tokenizer(folder),
        generation_config=settings.of_folder(folder),
    )  # fmt: skip


def rotary(config, kind: str) -> np.ndarray:
    """Frequencies of the rotary embedding: theta**(-2i/size) (arXiv 2104.09864, equation 15)."""
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": getattr(config, "rope_theta", 10000.0)}
    if rope.get("rope_type", "default") != "default" or getattr(config, "rope_scaling", None):
        refuse("a scaled rotary embedding (load it with sources.models.load, then use runtime.pack_)", kind)
    size = shape(config)["size"]
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return (1 / np.float32(rope["rope_theta"]) ** exponents).astype(np.float32)


class Tensors:
    """The tensors of safetensors files, read when they are asked for, some rows at a time."""

    def __init__(self, paths: list[Path]):
        self.entries = {}
        for path in paths:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self.entries |= {key: (path, 8 + length, entry) for key, entry in header.items()}

    def shape(self, key: str) -> list[int]:
        """Shape of a tensor, as the header says."""
        return self.entries[key][2]["shape"]

    def read(self, key: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Rows `first` to `last` - 1 of a tensor (bfloat16 as uint16 of the same bits); KeyError without it."""
        path, start, entry = self.entries[key]
        kind, dimensions = np.dtype(_TYPES[entry["dtype"]]), entry["shape"]
        last = dimensions[0] if last is None else min(last, dimensions[0])
        width = int(np.prod(dimensions[1:])) * kind.itemsize
        with open(path, "rb") as file:
            file.seek(start + entry["data_offsets"][0] + first * width)
            content = file.read((last - first) * width)
        return np.frombuffer(content, kind).reshape(last - first, *dimensions[1:])

    def floats(self, key: str, first: int = 0, last: int | None = None) -> np.ndarray | None:
        """A tensor as float32, None where there is none."""
        if key not in self.entries:
            return None
        found = self.read(key, first, last)
        if found.dtype == np.uint16:
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found.astype(np.float32)

    def matrix(self, name: str, bits: int | None = None) -> Packed:
        """The packed matrix of a module: its codes, or its plain weights rounded to `bits` (None: bfloat16)."""
        if f"{name}.weight_packed" in self.entries:
            return self._codes(name)
        if f"{name}.weight" not in self.entries:
            raise ValueError(f"the checkpoint has no {name}.weight; all weights must be there; export it again.")
        (rows, columns), key = self.shape(f"{name}.weight"), f"{name}.weight"
        if bits is None:
            group, bits = columns, pack.PLAIN
        else:
            group = next((size for size in (64, 32) if columns % size == 0), columns)
        data, step = _room(rows, columns, bits, group, True)
        for first in range(0, rows, ROWS):
            part, out = self.floats(key, first, first + ROWS), data[step(first) : step(first + ROWS)]
            if bits == pack.PLAIN:
                pack.pack_bits(bfloat16(part), out)
            else:
                codes, scale = nearest(part, bits, group)
                pack.pack_arrays(codes, scale, None, bits=bits, group_size=group, out=out, name=name)
        return Packed(data, rows, columns, bits, group)

    def _codes(self, name: str) -> Packed:
        """A matrix in the convention of `export.packing`, from its words to the packed layout."""
        if f"{name}.weight_codebook" in self.entries or any(key.startswith("codebooks.") for key in self.entries):
            raise ValueError(f"{name} is on a grid with a codebook; evenly spaced grids are packed; load it unpacked.")
        rows, columns = self.read(f"{name}.weight_shape").tolist()
        words, groups = self.shape(f"{name}.weight_packed")[1], self.shape(f"{name}.weight_scale")[1]
        bits = next(bits for bits in range(2, 9) if -(-columns * bits // 32) == words)
        size, zero = columns // groups, None
        if f"{name}.weight_zero_point" in self.entries:
            stored = self.read(f"{name}.weight_zero_point")
            zero = np.ascontiguousarray(spread(np.ascontiguousarray(stored.T), bits, rows).T)
        scale = self.floats(f"{name}.weight_scale")
        if not np.array_equal((bfloat16(scale).astype(np.uint32) << 16).view(np.float32), scale):
            raise ValueError(f"scales of {name} need more than 16 bits; quantize again, or load it unpacked.")
        data, step = _room(rows, columns, bits, size, zero is None)
        for first in range(0, rows, ROWS):
            some = slice(first, first + ROWS)
            codes = spread(self.read(f"{name}.weight_packed", first, first + ROWS), bits, columns)
            grid = {"bits": bits, "group_size": size, "out": data[step(first) : step(first + ROWS)], "name": name}
            pack.pack_arrays(codes, bfloat16(scale[some]), None if zero is None else zero[some], **grid)
        return Packed(data, rows, columns, bits, size, zero is None)


def _room(rows: int, columns: int, bits: int, group: int, symmetric: bool):
    """Memory for a packed matrix, and a function from a row (a multiple of 16) to the place of its tile."""
    tile = sum(pack.tile_bytes(columns, bits, group, symmetric))
    return zeros(-(-rows // pack.TILE) * tile), lambda row: row // pack.TILE * tile


def spread(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """uint8 codes [n, count] of uint32 words [n, any]: code i of a row lies at its bits i · bits and on."""
    n, period = len(words), -(-words.shape[1] // bits)  # 32 codes fill `bits` words
    words = np.pad(words, ((0, 0), (0, period * bits - words.shape[1]))).reshape(n, period, bits)
    codes = np.empty((n, period, 32), np.uint8)
    for j in range(32):
        word, shift = divmod(j * bits, 32)
        value = words[:, :, word] >> np.uint32(shift)
        if shift + bits > 32:
            value = value | words[:, :, word + 1] << np.uint32(32 - shift)
        codes[:, :, j] = value & np.uint32(2**bits - 1)
    return codes.reshape(n, -1)[:, :count]


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to bfloat16 (to nearest, ties to even), uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def nearest(weight: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales (bits of bfloat16) of float32 rows on the symmetric grid of `quantizers.grid`."""
    groups, middle = weight.reshape(len(weight), -1, group), 2 ** (bits - 1)
    high, low = np.maximum(groups.max(-1), 0), np.minimum(groups.min(-1), 0)
    stored = bfloat16(np.maximum(high / np.float32(middle - 1), (0 - low) / np.float32(middle)))
    stored = np.where(stored < 0x80, np.uint16(0x3F80), stored)  # below the least normal number: a group of zeros
    scale = (stored.astype(np.uint32) << 16).view(np.float32)[..., None]
    codes = np.rint(groups / scale) + np.float32(middle)
    return codes.clip(0, 2**bits - 1).astype(np.uint8).reshape(weight.shape), stored


class Tokenizer:
    """`encode` and `decode` as transformers has them, of a folder's tokenizer.json alone; no chat template.

    Opened when it is first used. What tokenizer_config.json says of BOS counts as little as it does in transformers.
    """

    def __init__(self, folder: Path):
        self.path, self._core = Path(folder) / "tokenizer.json", None

    @property
    def core(self):
        """The `tokenizers.Tokenizer`."""
        if self._core is None:
            from tokenizers import Tokenizer as Core

            self._core = Core.from_file(str(self.path))
            self._core.no_truncation()  # a file may hold what its model was trained with
            self._core.no_padding()
        return self._core

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens that the tokenizer puts around it (such as BOS)."""
        return self.core.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool = False) -> str:
        """The text of token ids; spaces stay as they are, and ValueError for cleaning them up."""
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True; only False is done here; leave it out.")
        return self.core.decode(list(tokens), skip_special_tokens=skip_special_tokens)
