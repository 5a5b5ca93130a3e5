"""Language models by name, folder or Hub id: checked before they are loaded, and ready to compute."""

import contextlib
import hashlib
import re
from pathlib import Path

from lib import files
from lib.sources import checks, note, packaged, place

_HUB = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FETCHED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_NOT_FETCHED = ["*/*", "consolidated*"]  # second copies of the weights in other layouts
_DECODERS = ("gpt_neox", "gpt_neox_japanese")  # decoders, though their is_decoder is False like that of an encoder
_TYPES = ("float32", "bfloat16", "float16")


def load(name: str = packaged.NAME, *, dtype=None, device=None):
    """Load a decoder-only language model; returns (`PreTrainedModel` in eval mode, tokenizer).

    `name` is a packaged name, the name of a folder in `checkpoints/`, any other folder, or a Hub id "owner/name".
    `dtype` is "float32", "bfloat16", "float16" or a torch dtype; None keeps the checkpoint's own.
    `device` None takes a GPU where there is one. The tokenizer is also found as `model.tokenizer`.
    Attention is computed as transformers chooses: `sdpa`, or `eager` for families that `sdpa` would get wrong.

    Raises `FileNotFoundError` for what does not exist and `ValueError` for what is damaged, unsafe or of another kind.
    """
    from lib.metrics import count

    dtype, device, name = _dtype(dtype), _device(device), str(name)
    with quiet():
        folder, origin = find(name)
        model, tokenizer = _read(folder, checks.checkpoint(folder), dtype)
    checks.finite(model, name)
    model = model.to(device).eval()
    model.tokenizer = tokenizer
    shown = name if origin == "packaged" or origin.startswith("Hub") else folder.name
    sha256 = fingerprint(folder)
    note(kind="model", name=shown, origin=origin, sha256=sha256)
    millions = count.parameters(model) / 1e6
    kind = str(model.dtype).removeprefix("torch.")
    print(f"model {shown}: {origin}, {kind} on {device}, {millions:.1f} M parameters, sha256 {sha256[:8]}")
    return model, tokenizer


def find(name: str) -> tuple[Path, str]:
    """The folder that `name` means, and where it came from: "packaged", "folder PATH" or "Hub ID@COMMIT".

    A packaged model is converted on its first use, a Hub model is downloaded into the Hub's own cache.
    """
    if name in packaged.MODELS:
        return packaged.folder(name), "packaged"
    for path in (files.checkpoints() / name, Path(name).expanduser(), files.home() / name):
        if not name:
            continue
        files.recover(path)  # a save that was killed between its two renames
        if path.is_dir():
            return path, f"folder {place(path)}"
    if _HUB.fullmatch(name):
        folder = _fetch(name)
        return folder, f"Hub {name}@{folder.name[:12]}"
    raise FileNotFoundError(
        f"model {name!r} is neither packaged nor a folder; {files.choices(name, _names())} "
        'Or give the path of a folder, or a Hub id "owner/name".'
    )


def fingerprint(source) -> str:
    """Hexadecimal SHA-256 that tells models apart.

    Of a checkpoint folder: the SHA-256 of its weights' file (of the list of its shards' hashes where there are
    several). Of a model: that of its tensors as they are now, so a model changed in place has another one.
    """
    if isinstance(source, str | Path):
        hashes = [f"{checks.sha256(path)}  {path.name}\n" for path in checks.weights(source)]
        return hashes[0].split()[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    import torch

    digest = hashlib.sha256()
    for key, tensor in source.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet():
    """Without the progress bars and warnings of transformers, whose settings are then put back as they were.

    What its loading report would say (weights that are missing or unused) is looked at by `load` itself.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _read(folder, config, dtype):
    quantized = (config.get("quantization_config") or {}).get("quant_method")
    if quantized == "compressed-tensors":
        from lib.export import compressed_tensors

        model, tokenizer = compressed_tensors.load(folder)
        if dtype is not None:
            _cast(model, dtype)
        return model, tokenizer
    if quantized:
        raise ValueError(
            f"{place(folder)} is quantized already ({quantized}); plain and compressed-tensors checkpoints are loaded; "
            "choose the original model."
        )
    from transformers import AutoModelForCausalLM

    safe = {"trust_remote_code": False, "local_files_only": True}
    tokenizer = _tokenizer(folder, safe)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **safe,
        )
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{place(folder)} is no decoder-only model that the installed transformers knows "
            f"(model_type {config.get('model_type')!r}): {str(error).splitlines()[0]} Choose another model."
        ) from error
    _refuse_incomplete(folder, model, report)
    return model, tokenizer


def _cast(model, dtype):
    """Cast the parameters alone: `model.to` would also round the rotary frequencies, and the scales of the codes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _refuse_incomplete(folder, model, report):
    """Refuse what transformers would fill with random numbers, and encoders that it dresses up as decoders."""
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
    if report["unexpected_keys"]:
        unused = sorted(report["unexpected_keys"])
        print(f"model {folder.name}: {len(unused)} tensors of the checkpoint are unused, the first is {unused[0]}")


def _tokenizer(folder, safe):
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, **safe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        found, reason = None, str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        reason = "its vocabulary is empty"
    if not found:  # without tokenizer files transformers can build one that knows no words
        raise ValueError(
            f"{place(folder)} has no usable tokenizer ({reason}); tokenizer.json must be beside the weights; copy it."
        )
    return found


def _fetch(name):
    """Download (or find in the Hub's cache) the configuration, tokenizer and safetensors of a Hub model."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED))
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"model {name!r} was looked for in checkpoints/, as a folder, and on the Hugging Face Hub, which answered "
            f"({reason}); check the id and the network (and `hf auth login` for gated models), or give a local folder."
        ) from error


def _names():
    found = files.checkpoints().iterdir() if files.checkpoints().is_dir() else []
    return {*packaged.MODELS, *(path.name for path in found if path.is_dir() and not path.name.startswith("."))}


def _dtype(given):
    import torch

    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    if name not in _TYPES:
        raise ValueError(f"dtype={name!r} is no type for weights; {files.choices(name, _TYPES)}")
    return getattr(torch, name)


def _device(given):
    import torch

    chosen = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"device={given!r} cannot be used here ({str(error).splitlines()[0]}); use 'cpu'.") from error
