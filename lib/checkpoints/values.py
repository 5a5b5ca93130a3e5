"""The values in a config.json: those that transformers would refuse late, or in words that blame something else.

Needs no torch, so that a process which only generates does without it.
"""

import contextlib
import re
from pathlib import Path

from lib.checkpoints.stored import json_object
from lib.files import choices, place

TYPES = ("bfloat16", "double", "float", "float16", "float32", "float64", "half")  # floating, by torch's names
_ATTENTION = re.compile(r"(paged\|)?(eager|sdpa|flash_attention_[234]|flex_attention)")
_CODE = "eager, sdpa, flex_attention, flash_attention_2 to 4 or null"  # other names are code to be fetched


class Unusable(ValueError):
    """A config.json with values of which transformers can't make a model."""


def check(folder: Path, config: dict) -> None:
    """Raise `Unusable` for the first key whose value is none that transformers takes, with what it takes."""
    for key, value in config.items():
        allowed = _refused(key, value)
        if allowed:
            raise Unusable(
                f"{place(folder / 'config.json')} has {key}={value!r}; {allowed} is allowed; mend it, or copy it again."
            )


def _refused(key: str, value) -> str | None:
    """What is allowed in words, where `value` is not."""
    if key.endswith("_token_id"):
        many = value if isinstance(value, list) and key == "eos_token_id" else [value]
        fits = all(each is None or (isinstance(each, int) and not isinstance(each, bool)) for each in many)
        allowed = "a whole number or null" + (", or a list of them" if key == "eos_token_id" else "")
    elif key.endswith(("dropout", "_pdrop")):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, allowed = value is None or (number and 0 <= value <= 1), "a number from 0 to 1"
    elif key in ("dtype", "torch_dtype"):
        fits, allowed = value is None or value in TYPES, f"one of {', '.join(TYPES)}, or null,"
    elif key in ("attn_implementation", "_attn_implementation"):
        many = value.values() if isinstance(value, dict) else [value]
        fits = all(each is None or (isinstance(each, str) and _ATTENTION.fullmatch(each)) for each in many)
        allowed = _CODE
    elif key == "quantization_config":
        named = isinstance(value, dict) and isinstance(value.get("quant_method"), str)
        fits, allowed = value is None or named, "settings by name, with a quant_method, or no such key for plain weights"
    else:
        return None
    return None if fits else allowed


@contextlib.contextmanager
def configured(folder: Path | str):
    """Inside the block transformers makes a model of config.json; values that it can't use raise `Unusable`."""
    from huggingface_hub.errors import StrictDataclassError  # only where transformers makes a model

    path = Path(folder) / "config.json"
    try:
        yield
    except (StrictDataclassError, TypeError, AttributeError, ArithmeticError, IndexError, ImportError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unusable(
            f"{place(path)} has a value that transformers makes no model of ({reason}); "
            "each must be of its kind, as the family's configuration has it; mend it, or copy it again."
        ) from error
    except KeyError as error:  # a name that a table of transformers does not have
        config = json_object(path)
        named = [key for key, value in config.items() if isinstance(value, str) and error.args[:1] == (value,)]
        if not named or named == ["model_type"]:
            raise
        raise Unusable(
            f"{place(path)} has {named[0]}={config[named[0]]!r}, which transformers does not know; "
            f"{choices(config[named[0]], _names(named[0])) if _names(named[0]) else 'mend it, or copy it again.'}"
        ) from error


def _names(key: str) -> list[str]:
    """What may stand in a key that names an activation; nothing where that is not known."""
    from transformers.activations import ACT2FN  # loads torch, for an error's words alone

    return sorted(ACT2FN) if "act" in key else []
