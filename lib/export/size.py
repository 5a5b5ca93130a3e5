"""The size of an artifact to the byte, before it is written and before anything is packed or even quantized.

Type and shape of every tensor are known, the safetensors header follows from those, and the configuration is a few
kilobytes of JSON, so that a budget in bytes can be met without saving anything.
"""

import copy
import json
import tempfile
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from lib.export import packing, plain, stored_tensors
from lib.models import blocks
from lib.quantized.grid import Quantized

# as safetensors lays them out: by type in this order, then by name
_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def predict(model: nn.Module, planned: dict[str, Quantized] | None = None) -> int:
    """The value of `metrics.count.artifact_bytes` for the folder that saving `model` writes.

        planned: grids of modules that aren't quantized yet (or will be again), by name, from `packing.planned`; all
        others
    count as they are. A tied model needs only the embedding: its head is the same matrix.
    """
    planned = dict(planned or {})
    table = blocks.path_of(model, blocks.embeddings(model))
    if table in planned and blocks.tied(model):
        planned[blocks.path_of(model, blocks.head(model))] = planned[table]
    state = stored_tensors.packed_state(model, planned, pack=packing.outline)
    kept = remove_tied_weights_from_state_dict({key: part for key, part in state.items() if not part.is_meta}, model)
    state = {key: tensor for key, tensor in state.items() if tensor.is_meta or key in kept}
    if getattr(model, "_weight_conversions", None) != []:  # skipped: it takes a while even without anything to revert
        state = revert_weight_conversion(model, state)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=plain.SHARD
    )
    shards = [{name: state[name] for name in names} for names in split.filename_to_tensors.values()]
    total = sum(map(file_bytes, shards)) + _configuration(model, planned)
    if split.is_sharded:
        replaced = {f"{name}.weight" for name in planned}
        count = sum(part.numel() for name, part in model.named_parameters() if name not in replaced)
        index = {"metadata": {"total_parameters": count, **split.metadata}, "weight_map": split.tensor_to_filename}
        total += len(json.dumps(index, indent=2, sort_keys=True)) + 1
    return total


def file_bytes(tensors: dict[str, Tensor]) -> int:
    """Size of the safetensors file of `tensors`, header and contents, computed without their numbers."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    order = list(_TYPES)
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise ValueError(f"{name} is of type {tensor.dtype}; choose one of {', '.join(map(str, order))}: cast it.")
    for name, tensor in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + end


def _configuration(model: nn.Module, planned: dict[str, Quantized]) -> int:
    """Bytes of config.json and generation_config.json, as transformers writes them."""
    config, head, table = copy.deepcopy(model.config), blocks.head(model), blocks.embeddings(model)
    ends = [planned.get(blocks.path_of(model, part)) for part in (table, head)]
    config.tie_word_embeddings = blocks.alike(model) and ends[0] is ends[1]
    config.dtype, config.architectures = str(model.dtype).removeprefix("torch."), [type(model).__name__]
    config.quantization_config = stored_tensors.quantization_config(model, planned)
    if config.quantization_config is None:
        del config.quantization_config
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir())
