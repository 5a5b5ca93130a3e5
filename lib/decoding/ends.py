"""End-of-text tokens, by the rule of transformers' `generate`, for models in memory and for folders.

`generate` ends at the `eos_token_id` of the generation settings: those of generation_config.json where a folder has
one, even if it names none, else those in config.json. Defaults of the configuration class and the tokenizer's own
token do not count. Tasks also end at the tokenizer's end-of-text token (`of_task`).
"""

from collections.abc import Iterable
from pathlib import Path

from lib.checkpoints import stored


def of_folder(folder: Path | str) -> tuple[int, ...]:
    """The tokens that end a text of the checkpoint in `folder`, without loading it; needs no torch.

    Raises ValueError for ids that are not integers, and for files that are no JSON objects.
    """
    return ids(stored.settings(folder).get("eos_token_id"))


def of_model(model) -> tuple[int, ...]:
    """The end tokens of a transformers model, from its `generation_config`."""
    return ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))


def of_task(named: Iterable[int], tokenizer) -> frozenset[int]:
    """The tokens that end an answer to a task: those `named` by the model, and the tokenizer's own."""
    return frozenset({*named, *ids(getattr(tokenizer, "eos_token_id", None))})


def ids(named) -> tuple[int, ...]:
    """Token ids from a setting: None, a number, or a list of numbers. Raises ValueError for anything else."""
    found = () if named is None else tuple(named) if isinstance(named, Iterable) else (named,)
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in found):
        raise ValueError(
            f"eos_token_id={named!r}; a token id, a list of them or null is allowed; mend generation_config.json."
        )
    return found
