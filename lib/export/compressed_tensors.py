"""Quantized models as checkpoints in the compressed-tensors convention, format `pack-quantized`.

`save` writes a folder that plain `AutoModelForCausalLM.from_pretrained` opens and that vLLM and others know;
`load` gives the model back with its integer codes (`QuantLinear`).

What plain transformers (5.23, with compressed-tensors 0.20) opens: all of 2 to 8 bits, symmetric or not, any group
size, as long as every quantized matrix has the same grid, embedding and head included, tied or not. It dequantizes
while loading ("dequantize": true in config.json): the weights are then equal bit for bit to those that `QuantLinear`
computes in the checkpoint's own dtype. Matrices with different grids are written with a config group for each grid.
Plain transformers opens those when all are symmetric and the embedding isn't quantized; it refuses asymmetric ones (it
expects unpacked zero points), quantized embeddings beside other grids (it asks for their weight before they have one),
codebooks, half-integer and balanced levels (it knows no such types), and experts left as they are (it asks for packed
ones). `load` reads all of them. Of half-integer and balanced levels, `quantized.integers.integers_` makes integer grids
with equal values and one bit more, before saving, which plain transformers opens like any other.

vLLM describes the same convention for linear layers and, by the class "Embedding", for embeddings that aren't tied;
that was not tried here.

A tied matrix is stored once, under the embedding's name, and config.json says whether the model is tied. `groups` keeps
config.json short; `size.predict` gives the size of a folder before it is written.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

from lib import architectures, checkpoints, files, folders
from lib.export import groups, plain, tensor_names
from lib.export.pretrained import Packed
from lib.export.stored_tensors import layers
from lib.models import blocks
from lib.quantized import replace


def save(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model`, whose quantized layers are `QuantLinear`, and `tokenizer` to `folder`; returns `folder`.

    The folder holds safetensors (sharded above 5 GB), config.json with its `quantization_config`, the tokenizer and
    `manifest.json` with the SHA-256 of every file. It is complete or absent, and replaces an older one at the end.
    Raises ValueError for a model without quantized layers, OSError as `plain.save` does.
    """
    if not layers(model):
        raise ValueError(
            f"{type(model).__name__} has no quantized layers; they are what this format is for; "
            "quantize it first (quantizers.rtn, quantizers.gptq), or write it with export.plain.save."
        )
    return plain.write(mark(model), tokenizer, folder, kind="pack-quantized")


export = save  # what all exporters are called by


def load(folder: Path | str, *, adapter: str | None = None):
    """Read what `save` wrote; returns (model in eval mode with `QuantLinear` layers, tokenizer).

    adapter: "ignore" leaves an adapter in the folder where it is; None refuses the folder.
    Raises FileNotFoundError or ValueError when the folder is broken, unsafe, or quantized in another way.
    """
    files.check_name(folder, written=False)
    folders.recover(folder)
    return folders.unchanged(folder, lambda: _load(folder, adapter))


def _load(folder, adapter):
    config = checkpoints.checkpoint(folder, adapter=adapter).get("quantization_config") or {}
    if config.get("format") != "pack-quantized":
        raise ValueError(
            f"{checkpoints.place(folder)} has format {config.get('format')!r}; only pack-quantized is read here; "
            "load it with sources.models.load."
        )
    tensors = {}
    for path in checkpoints.weights(folder):
        tensors |= load_file(path)
    model = _skeleton(folder)
    tensors = tensor_names.of_model(tensors, model)
    _fill(model, groups.unpack(tensors, config, model), tensors)
    model.tokenizer = checkpoints.tokenizer(folder)
    return mark(model).eval(), model.tokenizer


def mark(model: nn.Module) -> nn.Module:
    """Make plain `model.save_pretrained(folder)` write the packed form too; quantizers call it, `model` is returned.

    Without it transformers would write the raw codes, which no loader reads: the reloaded layers would be random.
    """
    model.hf_quantizer = Packed()
    return model


def _skeleton(folder):
    """The model of config.json with allocated, uninitialised memory, all of which must be filled."""
    architectures.make_known()
    with checkpoints.configured(folder), no_init_weights():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # skipped together with the initialization
    # the class of the configuration fills in end tokens that the folder does not name; from_pretrained does not
    own = {} if (Path(folder) / "generation_config.json").is_file() else {"config_file_name": "config.json"}
    model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True, **own)
    return model


def _fill(model, found, tensors):
    """Put the quantized layers and all other tensors into the skeleton; only tied tensors may be missing."""
    for name, matrix in found.items():
        if matrix.codes.shape != model.get_submodule(name).weight.shape:
            raise ValueError(f"{name} is {list(matrix.codes.shape)}, not as config.json says; copy the folder again.")
    _fill_ends(model, found, tensors)
    ends = [blocks.path_of(model, part) for part in (blocks.embeddings(model), blocks.head(model))]
    replace.replace_(model, {name: matrix for name, matrix in found.items() if name not in ends})
    result = model.load_state_dict(tensors, strict=False)
    blocks.state_tying_(model)
    held = {key for key in result.missing_keys if key.rpartition(".")[0] in layers(model) and not key.endswith(".bias")}
    missing = set(result.missing_keys) - held - set(model.all_tied_weights_keys)
    if missing or result.unexpected_keys:
        raise ValueError(
            f"the checkpoint lacks {sorted(missing)} and has {result.unexpected_keys} too many; its tensors must be "
            "those of its config.json; export it again."
        )


def _fill_ends(model, found, tensors):
    """Fill quantized embedding and head, as one matrix or two, depending on the stored tensors, as in transformers.

    The config may say "tied" although two different matrices are stored, and a single matrix may have either name.
    """
    table, head = (blocks.path_of(model, part) for part in (blocks.embeddings(model), blocks.head(model)))
    first, last = found.get(table), found.get(head)
    if blocks.tied(model):
        unpacked = {name: tensors.get(f"{name}.weight") for name in (table, head)}
        if last is None and unpacked[head] is None:
            last = first
        elif first is None and unpacked[table] is None:
            first = last
            if last is None:
                tensors[f"{table}.weight"] = tensors.pop(f"{head}.weight")
        elif first is not None and last is not None:
            last = first if blocks.equal(first, last) else last
        elif first is None and last is None and not torch.equal(*unpacked.values()):
            blocks.untie_(model)
    replace.place_(model, first, last)
