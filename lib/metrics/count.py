"""Exact counts: weights, bytes on disk, bytes and operations per token."""

from pathlib import Path

from torch import nn

from lib.checkpoints import stored
from lib.metrics.score import Score, exact
from lib.models import blocks

# Endings of the compressed-tensors convention come first: a quantized head is codes before it is a head.
_SUFFIXES = {
    ".weight_packed": "codes",
    ".weight_scale": "scale",
    ".weight_zero_point": "zero_point",
    ".weight_shape": "shape",
    ".weight_g_idx": "order",
    ".weight_codebook": "codebook",
}
_CODEBOOKS = "codebooks."  # codebooks that several matrices share
_EMBEDDINGS = ("embed_tokens", "word_embeddings", "embed_in", "embed_positions", "wte", "wpe")
_HEADS = ("lm_head", "embed_out")
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template", "spiece", "spm")
_CONFIG = ("config.json", "generation_config.json", "preprocessor_config.json")
_DOCUMENTS = ("readme", "license", "notice", "manifest", ".gitattributes")
_WEIGHTS = (".bin", ".gguf", ".onnx", ".pt", ".pth", ".npz", ".data")
NOT_SHIPPED = ("tokenizer", "document")  # kinds of the ledger that are no part of the artifact's weight


def measure(model: nn.Module, folder: Path | str) -> dict[str, Score]:
    """`parameters`, `artifact_bytes`, `bits_per_weight` and `flops_per_token` of a model saved in `folder`."""
    return {
        "parameters": exact(parameters(model), "weights", higher_is_better=False),
        "artifact_bytes": exact(artifact_bytes(folder), "bytes", higher_is_better=False),
        "bits_per_weight": exact(bits_per_weight(folder, model), "bits", higher_is_better=False),
        "flops_per_token": exact(flops_per_token(model), "FLOP", higher_is_better=False),
    }


def parameters(model: nn.Module) -> int:
    """Logical weights: tied weights or codes count once, a code as a weight; scales and zero points are no weights."""
    return blocks.weight_count(model)


def bytes_per_token(model: nn.Module, context: int = 0) -> int:
    """Bytes that one decoding step at batch 1 has to read: weights, and keys and values.

    Weights count as the matrix products read them: a `QuantLinear` reads its cached dequantized matrix in the model's
    type. The embedding counts as one row, unless it is tied to the head, which reads it whole.
    `context` is the number of positions already in the cache, which is held in the model's type.
    """
    table, size = blocks.embeddings(model), model.dtype.itemsize
    quantized = [part for part in blocks.linears(model).values() if blocks.is_quantized(part)]
    total = sum(parameter.nbytes for parameter in model.parameters())
    total += sum(part.in_features * part.out_features for part in quantized) * size
    if not blocks.tied(model):
        total += table.embedding_dim * size - sum(parameter.nbytes for parameter in table.parameters())
    config = blocks.config(model)
    keys = sum(_spans(config, context)) * _key_heads(config) * _head_size(config)
    return total + 2 * keys * size


def flops_per_token(model: nn.Module, context: int = 0) -> int:
    """Matrix-product operations (2 per multiply-add) of one token's forward pass, head included.

    `context` is the number of positions that the token attends to; 0 leaves attention scores and values out. Norms,
    rotary embedding, softmax and activations are not counted.
    """
    products = sum(part.in_features * part.out_features for part in blocks.linears(model).values())
    config = blocks.config(model)
    # one product of the query with every key, one of the scores with every value
    attention = 2 * sum(_spans(config, context)) * config.num_attention_heads * _head_size(config)
    # what an architecture of ours multiplies beside these (talking heads mix the heads for every key)
    products += sum(part.more_products(config, context) for part in model.modules() if hasattr(part, "more_products"))
    return 2 * (products + attention)


def artifact_bytes(folder: Path | str) -> int:
    """Bytes to ship for the weights: every file in `folder` but the tokenizer's, README, licence and manifest.

    Safetensors count whole (header, scales, zero points, embeddings, head), and so do configurations and any file
    of unknown purpose. The tokenizer is left out because it is the same for every compression of a model.
    """
    table = ledger(folder)
    return int(table.loc[~table.kind.isin(NOT_SHIPPED), "bytes"].sum())


def bits_per_weight(folder: Path | str, model: nn.Module | int) -> float:
    """8 x `artifact_bytes` per logical weight of `model` (or of a number of weights)."""
    weights = parameters(model) if isinstance(model, nn.Module) else model
    if weights < 1:
        raise ValueError(f"{weights} weights; give a model, or the number of its weights, 1 or more.")
    return 8 * artifact_bytes(folder) / weights


def ledger(folder: Path | str):
    """Every byte of a checkpoint folder, as a DataFrame with columns file, name, kind, dtype, shape, bytes.

    One row per tensor of each safetensors file, one for its header, one per other file; the bytes add up to the file
    sizes exactly. Kinds: embedding, head, norm, linear, bias, codes, scale, zero_point, codebook, shape, order, header,
    config, tokenizer, weights (formats without a readable header), document, other.
    Raises FileNotFoundError for a folder without files, ValueError for a safetensors file cut short.
    """
    import pandas  # loads slowly, only for the table

    folder = Path(folder)
    entries = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            entries += [(name, *entry) for entry in _tensors(path, size)]
        else:
            entries.append((name, name, _kind_of_file(path.name), None, None, size))
    if not entries:
        raise FileNotFoundError(f"{folder} holds no files; give the folder of a saved model.")
    return pandas.DataFrame(entries, columns=["file", "name", "kind", "dtype", "shape", "bytes"])


def _tensors(path: Path, size: int) -> list[tuple]:
    """(name, kind, dtype, shape, bytes) of the header and of every tensor of a safetensors file."""
    start, found = stored.opened(path)
    entries = [("(header)", "header", None, None, start)]
    for name, entry in found.items():
        begin, end = entry["data_offsets"]
        entries.append((name, _kind_of_tensor(name), entry["dtype"], tuple(entry["shape"]), end - begin))
    if (total := sum(entry[-1] for entry in entries)) != size:
        raise ValueError(f"{path} has {size} bytes and its header accounts for {total}; copy it again.")
    return entries


def _kind_of_tensor(name: str) -> str:
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    if name.startswith(_CODEBOOKS):
        return "codebook"
    parts = name.split(".")
    if any(part in _EMBEDDINGS for part in parts):
        return "embedding"
    if any(part in _HEADS for part in parts):
        return "head"
    if len(parts) > 1 and ("norm" in parts[-2] or parts[-2].startswith("ln_")):
        return "norm"
    return "bias" if parts[-1] == "bias" else "linear"


def _kind_of_file(name: str) -> str:
    name = name.lower()
    if name.startswith(_DOCUMENTS):
        return "document"
    if name in _CONFIG or name.endswith(".index.json"):
        return "config"
    if name.startswith(_TOKENIZER):
        return "tokenizer"
    return "weights" if name.endswith(_WEIGHTS) else "other"


def _head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _key_heads(config) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon 7B: one key for all queries
    shared = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return shared or config.num_attention_heads


def _spans(config, context: int) -> list[int]:
    """How many of `context` positions each block attends to: all, or those in its sliding window."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or context
    return [min(context, window) if kind == "sliding_attention" else context for kind in kinds]
