"""Loads a model from a checked folder: transformers reads what was checked and nothing else."""

import contextlib
import json
import tempfile
from pathlib import Path

from lib import checkpoints
from lib.checkpoints import stored
from lib.files import place

_DECODERS = ("gpt_neox", "gpt_neox_japanese")  # decoders, though their is_decoder is False like that of an encoder
_SAFE = {"trust_remote_code": False, "local_files_only": True}


def read(folder: Path, config: dict, dtype=None, *, adapter: str | None = None):
    """(model, tokenizer) of the checkpoint in `folder`; config: its config.json, from `checkpoints.checkpoint`.

    dtype: a torch dtype, None for the checkpoint's own. adapter: as for `models.load`; it is not applied here.
    Raises ValueError for what transformers doesn't know, would fill with random numbers, or is no decoder.
    """
    quantized = (config.get("quantization_config") or {}).get("quant_method")
    if quantized == "compressed-tensors" and adapter != "merge":
        from lib.export import compressed_tensors  # needs torch; `models.find` does not

        model, words = compressed_tensors.load(folder, adapter=adapter)
        if dtype is not None:
            _cast(model, dtype)
        return model, words
    if quantized:
        raise ValueError(
            f"{place(folder)} is quantized already ({quantized}); plain and compressed-tensors checkpoints are loaded, "
            "and adapters are merged into plain ones; choose the original model."
        )
    from lib import architectures  # needs torch and transformers
    from lib.models import blocks  # needs torch

    architectures.make_known()
    with checkpoints.configured(folder):  # which a tokenizer's class is chosen by
        words = checkpoints.tokenizer(folder)
    with _view(folder) as view:
        model, report = _from_transformers(folder, view, config, dtype)
    model.name_or_path = model.config._name_or_path = str(folder)
    _refuse_incomplete(folder, model, report)
    if model.config.tie_word_embeddings and not blocks.tied(model):
        print(f"model {folder.name}: config.json says tied, but the weights hold a head of their own, which is used")
    return model, words


def _from_transformers(folder, view, config, dtype):
    from transformers import AutoModelForCausalLM  # loads torch; `models.find` does without

    try:
        with checkpoints.configured(folder):
            return AutoModelForCausalLM.from_pretrained(
                view,
                dtype=dtype or "auto",
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by name
                **_SAFE,
            )
    except checkpoints.Unusable:
        raise
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{place(folder)} is no decoder-only model that the installed transformers knows "
            f"(model_type {config.get('model_type')!r}): {str(error).splitlines()[0]} Choose another model, or call "
            "architectures.by_name with the file that defines this one first."
        ) from error


@contextlib.contextmanager
def _view(folder):
    """A folder with links to the checked files only: transformers finds no other weights, and no adapter."""
    with tempfile.TemporaryDirectory(prefix="thimble-") as temporary:
        names = ["config.json", "generation_config.json"]
        for path in [*(folder / name for name in names), *checkpoints.weights(folder)]:
            if path.is_file():
                (Path(temporary) / path.name).symlink_to(path.resolve())
        if (folder / stored.INDEX).is_file():  # with the metadata that transformers asks for and some writers leave out
            index = {"metadata": {}, "weight_map": stored.attributed(folder)}
            (Path(temporary) / stored.INDEX).write_text(json.dumps(index))
        yield Path(temporary)


def _cast(model, dtype):
    """Cast the parameters alone: `model.to` would also round the rotary frequencies, and the scales of the codes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _refuse_incomplete(folder, model, report):
    """Refuse models that transformers would fill with random numbers, and encoders that it loads as decoders."""
    lacking = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lacking:
        raise ValueError(
            f"{place(folder)} lacks {len(lacking)} weights of the shape that its config.json asks for, the first is "
            f"{lacking[0]}; all must be there; copy the folder again."
        )
    if getattr(model.config, "is_decoder", None) is False and model.config.model_type not in _DECODERS:
        raise ValueError(
            f"{place(folder)} is an encoder ({model.config.model_type}); only decoder-only language models are "
            "compressed here; choose one whose config.json names an architecture that ends in ForCausalLM."
        )
    if not type(model).__name__.endswith("ForCausalLM") and _looks_ahead(model):
        raise ValueError(
            f"{place(folder)} is a {type(model).__name__}, which sees the tokens that it should predict; decoder-only "
            "language models are compressed here; choose one whose config.json names one that ends in ForCausalLM."
        )
    if report["unexpected_keys"]:
        unused = sorted(report["unexpected_keys"])
        print(f"model {folder.name}: {len(unused)} tensors of the checkpoint are unused, the first is {unused[0]}")


def _looks_ahead(model) -> bool:
    """Whether logits change with a token that comes after them (XLNet's and XLM's do)."""
    import torch  # folders are found and checked without torch

    ids = torch.arange(3, 11) % model.get_input_embeddings().num_embeddings
    texts = torch.stack([ids, torch.cat([ids[:-1], ids[:1]])])  # alike but for the last token
    with torch.no_grad():
        one, other = model.eval()(input_ids=texts).logits[:, :-1].float()
    return bool((one - other).norm() > 1e-3 * one.norm())
