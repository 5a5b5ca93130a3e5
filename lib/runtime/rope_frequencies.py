"""Rotary embeddings as configurations state them: the old and the new keys, and the frequencies that follow.

Read as `RotaryEmbeddingConfigMixin` of transformers reads them: `rope_scaling` before `rope_parameters`, `rope_type`
before `type`, and what is absent from both beside them.
"""

from typing import NamedTuple

import numpy as np

TABLES = {  # types whose frequencies stay the same at every length, and the keys that they read
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


class Rotation(NamedTuple):
    """float32 `frequencies` [rotated dimensions / 2], and the factor of their cosines and sines."""

    frequencies: np.ndarray
    scale: float = 1.0


def settings(config: dict, limit: int) -> dict:
    """The one rotary embedding of a configuration, complete: its type, base, share of the head, and their scaling.

    limit: positions of the context. Raises ValueError for settings that are no numbers.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters")
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise wrong("rope_parameters", given, "settings by name")
    theta, part = config.get("rope_theta", 10000.0), config.get("partial_rotary_factor", 1.0)
    return complete({"rope_theta": theta, "partial_rotary_factor": part} | given, limit)


def local(config: dict, kind: str, limit: int) -> dict:
    """The rotary embedding of blocks of one `kind` of attention, where a family has one for each (Gemma 3)."""
    nested = config.get("rope_parameters")
    nested = {} if nested is None else nested
    if not isinstance(nested, dict) or not nested.keys() <= {"full_attention", "sliding_attention"}:
        raise wrong("rope_parameters", nested, "settings by full_attention and sliding_attention")
    given = nested.get(kind)
    given = {"rope_type": "default"} if given is None else given
    if not isinstance(given, dict):
        raise wrong(f"rope_parameters[{kind!r}]", given, "settings by name")
    if kind == "full_attention":
        scaling = config.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            raise wrong("rope_scaling", scaling, "settings by name")
        given = given | scaling
    key, theta = ("rope_theta", 1e6) if kind == "full_attention" else ("rope_local_base_freq", 10000.0)
    return complete({"rope_theta": config.get(key, theta)} | given, limit)


def complete(found: dict, limit: int) -> dict:
    """`found` with its type under `rope_type`, checked: only numbers, above zero, and only keys that the type reads."""
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in TABLES:
        return {"rope_type": kind}
    found = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0} | found
    if kind == "llama3":
        found = {"original_max_position_embeddings": limit} | found
    unknown = sorted(found.keys() - {*COMMON, *TABLES[kind]})
    if unknown:
        raise wrong(f"rope_parameters[{unknown[0]!r}]", found[unknown[0]], f"what type {kind!r} reads")
    for key in ("rope_theta", "partial_rotary_factor", *TABLES[kind]):
        value = found.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise wrong(f"rope_parameters[{key!r}]", value, "a number above 0")
    return {key: value for key, value in found.items() if key != "type"} | {"rope_type": kind}


def rotated(found: dict, size: int) -> int:
    """How many of a head's `size` dimensions are rotated."""
    return int(size * found["partial_rotary_factor"])


def frequencies(found: dict, size: int) -> np.ndarray:
    """theta**(-2i / n) for the n rotated dimensions (arXiv 2104.09864, equation 15), scaled as the settings say."""
    count = rotated(found, size)
    exponents = np.arange(0, count, 2, dtype=np.float32) / np.float32(count)
    base = (1 / np.float32(found["rope_theta"]) ** exponents).astype(np.float32)
    if found["rope_type"] == "linear":
        base = base / np.float32(found["factor"])
    if found["rope_type"] == "llama3":
        base = _llama3(base, found)
    return base.astype(np.float32)


def _llama3(base: np.ndarray, found: dict) -> np.ndarray:
    """Low frequencies are divided by `factor`, high ones kept, those between interpolated (Llama 3.1)."""
    factor, low, high = (np.float32(found[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = np.float32(found["original_max_position_embeddings"])
    waves = np.float32(2 * np.pi) / base
    smooth = (context / waves - low) / (high - low)
    between = (1 - smooth) * base / factor + smooth * base
    stretched = np.where(waves > context / low, base / factor, base)
    return np.where((waves <= context / low) & (waves >= context / high), between, stretched)


def wrong(key: str, value, allowed: str) -> ValueError:
    """The error for an invalid setting."""
    return ValueError(
        f"the configuration says {key}={value!r}; {allowed} is allowed; mend config.json, or get an undamaged copy."
    )
