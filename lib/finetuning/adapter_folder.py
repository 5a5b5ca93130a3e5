"""Adapters in a folder of their own, in peft's form, with the identity of the model that they were made for.

peft reads such a folder (`PeftModel.from_pretrained(model, folder)`), and so does `models.load(folder,
adapter="merge")`. peft only compares shapes; here the manifest holds the SHA-256 of the model's weights, and another
model is refused.
"""

from pathlib import Path

from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from lib import checkpoints, files, folders
from lib.checkpoints import adapter_files, stored
from lib.trainers.low_rank import Adapters, Base, Part

_PREFIX = "base_model.model."
_ROOM = 1 << 20  # bytes for the configuration
_PARTS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def save(adapters: Adapters, folder: Path | str) -> Path:
    """Write trained `adapters` to `folder`, complete or absent; returns it.

    Raises ValueError for adapters whose training has not ended, OSError where the disk is too small.
    """
    if not adapters.parts:
        raise ValueError("the adapters are empty until the context that trains them has ended; save them after it.")
    tensors = {}
    for name, part in adapters.parts.items():
        found = {f"{_PREFIX}{name}.{ending}": getattr(part, key) for key, ending in _PARTS.items()}
        tensors |= {key: each.cpu().contiguous() for key, each in found.items() if each is not None}
    folders.check(folder, sum(each.nbytes for each in tensors.values()) + _ROOM)
    config = LoraConfig(
        r=adapters.rank, lora_alpha=adapters.alpha, target_modules=sorted(adapters.parts), task_type="CAUSAL_LM",
        use_rslora=adapters.kind == "rslora", use_dora=adapters.kind == "dora", inference_mode=True,
        base_model_name_or_path=adapters.base.name,
    )  # fmt: skip
    with folders.replace(folder, kind="adapter", base=adapters.base._asdict()) as temporary:
        config.save_pretrained(temporary)
        save_file(tensors, temporary / adapter_files.WEIGHTS, metadata={"format": "pt"})
    return Path(folder).expanduser()


def load(folder: Path | str, model: nn.Module | None = None) -> Adapters:
    """Read what `save` wrote. model: where given, the one that the adapters must have been made for.

    Raises FileNotFoundError or ValueError for what is missing, damaged, of another kind, or for another model.
    """
    folders.recover(folder)
    return folders.unchanged(folder, lambda: _load(Path(folder).expanduser(), model))


def _load(folder: Path, model: nn.Module | None) -> Adapters:
    for name in (adapter_files.CONFIG, adapter_files.WEIGHTS, checkpoints.MANIFEST):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{files.place(folder)} has no {name}; an adapter of ours has it; copy the folder again, or merge "
                'another program\'s with models.load(..., adapter="merge").'
            )
    checkpoints.verify(folder)
    stored.header(folder / adapter_files.WEIGHTS)
    config, tensors = stored.json_object(folder / adapter_files.CONFIG), load_file(folder / adapter_files.WEIGHTS)
    kind = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    base = adapter_files.made_for(folder)
    if base is None:
        raise ValueError(
            f"{files.place(folder)} does not say which weights it was made for; an adapter of ours does; merge it with "
            'models.load(..., adapter="merge").'
        )
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if kind == "rslora" else config["r"])
    ending = f".{_PARTS['a']}"
    names = [key.removeprefix(_PREFIX).removesuffix(ending) for key in tensors if key.endswith(ending)]
    parts = {name: _part(name, tensors, scaling) for name in names}
    found = Adapters(kind, config["r"], config["lora_alpha"], Base(**base), parts)
    if model is not None:
        found.check(model)
    return found


def _part(name: str, tensors: dict, scaling: float) -> Part:
    a, b, magnitude = (tensors.get(f"{_PREFIX}{name}.{ending}") for ending in _PARTS.values())
    return Part(a, b, scaling, magnitude)
