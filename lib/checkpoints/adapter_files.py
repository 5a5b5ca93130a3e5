"""Adapters in a folder: beside a model, or alone. What is to be done with one is the caller's word, never guessed.

transformers applies any `adapter_config.json` that it finds beside a model, even one that was already merged, and
keeps the adapter as separate layers: the change would count twice, and quantizers would meet layers they do not know.
"""

import warnings
from pathlib import Path

from lib import files
from lib.checkpoints import fingerprints, stored
from lib.checkpoints.stored import json_object
from lib.files import place
from lib.folders import manifest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CHOICES = ("ignore", "merge")
MERGE = "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"


def check(folder: Path, adapter: str | None) -> None:
    """Raise ValueError when `adapter` is no valid choice, or does not fit the contents of `folder`."""
    if adapter is not None and adapter not in CHOICES:
        raise ValueError(f"adapter={adapter!r} is nothing to do with one; {files.choices(str(adapter), CHOICES)}")
    if not (folder / CONFIG).is_file():
        if adapter == "merge":
            raise ValueError(
                f"{place(folder)} has no {CONFIG}, so there is nothing to merge; leave out adapter='merge'."
            )
        return
    if alone(folder) and adapter != "merge":
        raise ValueError(
            f"{place(folder)} is an adapter without its model, made for {base(folder)!r}; a whole model is needed; "
            f"load it with adapter='merge' (sources.models.load), or merge it yourself: {MERGE}."
        )
    if adapter is None:
        raise ValueError(
            f"{place(folder)} holds a model and an adapter for {base(folder)!r} ({CONFIG}), and does not say whether "
            "the adapter is merged into the model already; load it with adapter='ignore' for the model as it lies "
            f"there, or 'merge' to apply the adapter to it (sources.models.load), or move {CONFIG} elsewhere."
        )


def alone(folder: Path) -> bool:
    """Whether `folder` holds an adapter without a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base(folder: Path) -> str | None:
    """The base model that an adapter names: a Hub id, or a path on the machine where it was made."""
    return json_object(folder / CONFIG).get("base_model_name_or_path")


def named_base(folder: Path) -> str:
    """As `base`, for an adapter without a model beside it; ValueError where it names no base model."""
    found = base(folder)
    if not found:
        raise ValueError(
            f"{place(folder / CONFIG)} names no base_model_name_or_path, the model that it was made for; a folder or a "
            f"Hub id must stand there; add it, or merge the adapter yourself: {MERGE}."
        )
    return found


def made_for(folder: Path) -> dict[str, str] | None:
    """Name, and SHA-256 of weights and of layers, of the model that an adapter of ours was made for; None of others."""
    path = folder / manifest.NAME
    found = json_object(path).get("base") if path.is_file() else None
    return found if isinstance(found, dict) and {"name", "weights", "layers"} == set(found) else None


def merge(model, folder: Path):
    """`model` with the adapter in `folder` merged into its weights, an ordinary model again.

    Raises ValueError or FileNotFoundError for adapters that can't be merged, or that don't fit the model.
    """
    from peft import PeftConfig, PeftModel  # loads torch, only to merge an adapter

    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{place(folder)} has no {WEIGHTS}; adapters are read from safetensors; convert it.")
    stored.header(folder / WEIGHTS)
    if "auto_map" in json_object(folder / CONFIG):
        raise ValueError(f"{place(folder / CONFIG)} asks to run code of its own (auto_map); choose another adapter.")
    _refuse_other_base(model, folder)
    kind = PeftConfig.from_pretrained(folder)
    if kind.is_prompt_learning:
        raise ValueError(
            f"{place(folder)} is an adapter of kind {kind.peft_type.value}, which adds inputs and changes no weight; "
            "those that change weights (LoRA and its relatives) can be merged; run this one with peft."
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            merged = PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"the adapter in {place(folder)} can't be merged into {type(model).__name__}: "
                f"{' '.join(str(error).split())[:200]} It was made for {base(folder)!r}; choose that model, "
                f"or merge it yourself: {MERGE}."
            ) from error
    if lacking := [str(each.message) for each in said if "missing adapter keys" in str(each.message)]:
        raise ValueError(
            f"{place(folder / WEIGHTS)}: {lacking[0][:200]}; all its weights must be there; copy it again."
        )
    for name in ("peft_config", "_hf_peft_config_loaded"):  # attributes that make saving write an adapter
        vars(merged).pop(name, None)
    return merged


def _refuse_other_base(model, folder: Path) -> None:
    """Raise ValueError where an adapter of ours was made for other weights: peft compares shapes alone."""
    base = made_for(folder)
    if base and (found := fingerprints.rounded(model)) != base["weights"]:
        raise ValueError(
            f"the adapter in {place(folder)} was made for {base['name']} (SHA-256 {base['weights'][:12]}), and "
            f"{model.name_or_path or type(model).__name__} has SHA-256 {found[:12]}; choose the model that it was made "
            f"for, or merge it yourself: {MERGE}."
        )
