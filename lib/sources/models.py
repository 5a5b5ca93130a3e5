"""Language models by name, folder or Hub id: checked before they are loaded, and ready to compute."""

import hashlib
import os
import re
from pathlib import Path

from lib import checkpoints, files, folders
from lib.checkpoints import adapter_files, fingerprint, quiet
from lib.files import place
from lib.folders import folder_names
from lib.sources import model_loading, note, packaged

_HUB = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FETCHED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_TEMPLATES = "additional_chat_templates"  # the only folder in a checkpoint; others hold its weights in other layouts
_BEGINNINGS = [(_TEMPLATES[:end], _TEMPLATES[end]) for end in range(len(_TEMPLATES))]
_NOT_FETCHED = ["consolidated*", *(f"{same}{rest}/*" for same, other in _BEGINNINGS for rest in ("", f"[!{other}]*"))]
_TYPES = ("float32", "bfloat16", "float16")


def load(name: str = packaged.NAME, *, dtype=None, device=None, adapter: str | None = None):
    """Load a decoder-only language model; returns (`PreTrainedModel` in eval mode, tokenizer).

    `name` is a packaged name, the name of a folder in `checkpoints/`, the path of any folder (`./x` where
    `checkpoints/x` is there too), or a Hub id "owner/name".
    `dtype` is "float32", "bfloat16", "float16" or a torch dtype; None keeps the checkpoint's own.
    `device` None takes a GPU where there is one. The tokenizer is also found as `model.tokenizer`.
    Attention is computed as transformers chooses: `sdpa`, or `eager` for families that `sdpa` would get wrong.
    `adapter` says what to do with an `adapter_config.json` in the folder: "ignore" loads the model without it, "merge"
    applies the adapter (to that model, or to the one that the adapter names, where it lies alone), None refuses it.

    Raises `FileNotFoundError` for what does not exist and `ValueError` for what is damaged, unsafe or of another kind.
    """
    from lib.models import blocks  # needs torch; folders are found and checked without

    dtype, device = _dtype(dtype), device_of(device)
    with quiet():
        folder, origin = find(name)

        def read():
            return *_read(folder, dtype, adapter), _of_merged(folder) if adapter == "merge" else fingerprint(folder)

        (model, tokenizer, sha256), name = folders.unchanged(folder, read), str(name)
    checkpoints.finite(model, name)
    blocks.state_tying_(model)
    model = model.to(device).eval()
    model.tokenizer = tokenizer
    shown = name if origin == "packaged" or origin.startswith("Hub") else folder.name
    shown += {None: "", "ignore": " without its adapter", "merge": " with its adapter merged"}[adapter]
    note(kind="model", name=shown, origin=origin, sha256=sha256)
    millions = blocks.weight_count(model) / 1e6
    kind = str(model.dtype).removeprefix("torch.")
    print(f"model {shown}: {origin}, {kind} on {device}, {millions:.1f} M parameters, sha256 {sha256[:8]}")
    return model, tokenizer


def find(name: str | Path) -> tuple[Path, str]:
    """The folder that `name` means, and where it came from: "packaged", "folder PATH" or "Hub ID@COMMIT".

    `folder_names.find` says which folder a name or a path means. A packaged model is converted on its first use, a Hub
    model is downloaded into the Hub's own cache.
    """
    if str(name) in packaged.MODELS and not (isinstance(name, Path) and os.path.isdir(name)):
        return packaged.folder(str(name)), "packaged"
    if folder := folder_names.find(name):
        return folder, f"folder {place(folder)}"
    name = str(name)
    if _HUB.fullmatch(name):
        folder = _fetch(name)
        return folder, f"Hub {name}@{folder.name[:12]}"
    raise FileNotFoundError(
        f"model {name!r} is neither packaged nor a folder; {files.choices(name, _names())} "
        'Or give the path of a folder, or a Hub id "owner/name".'
    )


def _read(folder: Path, dtype, adapter: str | None):
    """(model, tokenizer) of a folder, checked; with its adapter merged where that is asked for."""
    adapter_files.check(folder, adapter)
    if adapter == "merge" and adapter_files.alone(folder):
        whole, _ = find(adapter_files.named_base(folder))
        model, tokenizer = model_loading.read(whole, checkpoints.checkpoint(whole), dtype)
        tokenizer = checkpoints.tokenizer(folder) if (folder / "tokenizer.json").is_file() else tokenizer
    else:
        model, tokenizer = model_loading.read(
            folder, checkpoints.checkpoint(folder, adapter=adapter), dtype, adapter=adapter
        )
    return (adapter_files.merge(model, folder) if adapter == "merge" else model), tokenizer


def _of_merged(folder: Path) -> str:
    """The fingerprint of a model and the adapter that was merged into it."""
    whole = find(adapter_files.named_base(folder))[0] if adapter_files.alone(folder) else folder
    hashes = [
        fingerprint(whole),
        *(checkpoints.sha256(folder / name) for name in (adapter_files.CONFIG, adapter_files.WEIGHTS)),
    ]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _fetch(name):
    """Download (or find in the Hub's cache) the configuration, tokenizer and safetensors of a Hub model."""
    from huggingface_hub import snapshot_download  # 0.1 s, only where the Hub is asked
    from huggingface_hub.errors import HFValidationError  # as above

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
    import torch  # folders are found and checked without torch

    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    if name not in _TYPES:
        raise ValueError(f"dtype={name!r} is no type for weights; {files.choices(name, _TYPES)}")
    return getattr(torch, name)


def device_of(given: str | None = None):
    """The torch device `given`; None takes a GPU where there is one, of several processes on a machine each its own.

    Raises ValueError for a device that is not there.
    """
    import torch  # folders are found and checked without torch

    own = os.environ.get("LOCAL_RANK")  # as `accelerate launch` and torchrun number the processes of a machine
    chosen = given or (("cuda" if own is None else f"cuda:{own}") if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"device={given!r} cannot be used here ({str(error).splitlines()[0]}); use 'cpu'.") from error
