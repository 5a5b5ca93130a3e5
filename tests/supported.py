"""What works on which family: what is refused by name, how tests look at it, and the table that the README shows.

    python -m tests.supported        writes the table into README.md

Tests try everything on every family of `tests.families`. What is not in `REFUSED` must work; what is in it must be
refused with those words, with the name of the model's class or type, and with what to do instead.
"""

import contextlib
import sys

import pytest

from lib import files, published
from lib.quantizers import METHODS
from tests.families import FAMILIES

_BEFORE = "has the norm .*, which is not on the way from the residual stream"
_BIAS = "has the norm .* with a bias, read by layers that have none"
_OTHER = "neither embedding, norm nor linear layer"
_FUSED = "without plain query, key, value and output layers"
_TYPE = "model type '{}'"

# operation -> family -> words of the refusal (a regular expression)
REFUSED = {
    "rotation": {
        "phi3": _FUSED,
        "phi3_windows": _FUSED,
        "phi3_longrope": _FUSED,
        "gemma2": _BEFORE,
        "gemma3": _BEFORE,
        "olmo": "a block 0 that computes something else once it is turned",
        "olmo2": _BEFORE,
        "olmo3": _BEFORE,
        "granite_windows": _OTHER,
        "stablelm": _BIAS,
        "stablelm_parallel": _BEFORE,
        "gpt_neox": _BIAS,
        "gpt_neox_sequential": _BIAS,
        "starcoder2": _BIAS,
        "falcon": _BIAS,
        "falcon_new": _BIAS,
        "falcon_alibi": _BIAS,
        "opt": _OTHER,
        "opt_projected": "0 norms beside its blocks",
        "nemotron": _BIAS,
        "glm4": _BEFORE,
        "exaone4": _BEFORE,
        "apertus": _OTHER,
        "hunyuan": _BEFORE,
    },
    "engine": {
        "ministral": _TYPE.format("ministral"),
        "ministral3": _TYPE.format("ministral3"),
        "phi": _TYPE.format("phi"),
        "phi_norms": _TYPE.format("phi"),
        "phi3_longrope": "a scaled rotary embedding 'longrope', which changes with the length",
        "gemma": _TYPE.format("gemma"),
        "gemma2": _TYPE.format("gemma2"),
        "vaultgemma": _TYPE.format("vaultgemma"),
        "olmo": _TYPE.format("olmo"),
        "olmo2": _TYPE.format("olmo2"),
        "olmo3": _TYPE.format("olmo3"),
        "granite": _TYPE.format("granite"),
        "granite_windows": _TYPE.format("granite_swa"),
        "stablelm": _TYPE.format("stablelm"),
        "stablelm_parallel": _TYPE.format("stablelm"),
        "gpt_neox": _TYPE.format("gpt_neox"),
        "gpt_neox_sequential": _TYPE.format("gpt_neox"),
        "starcoder2": _TYPE.format("starcoder2"),
        "cohere": _TYPE.format("cohere"),
        "cohere2": _TYPE.format("cohere2"),
        "falcon": _TYPE.format("falcon"),
        "falcon_new": _TYPE.format("falcon"),
        "falcon_alibi": _TYPE.format("falcon"),
        "opt": _TYPE.format("opt"),
        "opt_projected": _TYPE.format("opt"),
        "smollm3": _TYPE.format("smollm3"),
        "glm": _TYPE.format("glm"),
        "glm4": _TYPE.format("glm4"),
        "helium": _TYPE.format("helium"),
        "nemotron": _TYPE.format("nemotron"),
        "exaone4": _TYPE.format("exaone4"),
        "arcee": _TYPE.format("arcee"),
        "apertus": _TYPE.format("apertus"),
        "seed_oss": _TYPE.format("seed_oss"),
        "ernie": _TYPE.format("ernie4_5"),
        "hunyuan": _TYPE.format("hunyuan_v1_dense"),
    },
    # beside what the engine refuses in any case
    "engine, from a folder": {"llama_yarn": "a scaled rotary embedding 'yarn'"},
}

# columns of the table: the operations that none of a family may refuse
COLUMNS = {
    "quantize": ("load", *(method for method in METHODS if method != "rotation")),
    "prune": ("load", "prune"),
    "heal": ("load", "heal"),
    "save for plain transformers": ("load", "save"),
    "draft": ("load", "draft"),
    "tasks": ("load", "tasks"),
    "rotate": ("load", "rotation"),
    "packed engine": ("load", "engine"),
    "packed folder": ("load", "engine", "engine, from a folder"),
}
_WRITTEN = {
    "StableLm": "StableLM",
    "GPTNeoX": "GPT-NeoX",
    "Starcoder2": "StarCoder2",
    "SmolLM3": "SmolLM3",
    "Glm": "GLM",
    "Glm4": "GLM 4",
    "Exaone4": "EXAONE 4",
    "SeedOss": "Seed-OSS",
    "Ernie4_5": "ERNIE 4.5",
    "HunYuanDenseV1": "Hunyuan (dense)",
    "GraniteSWA": "Granite (windows)",
    "Olmo": "OLMo",
    "Olmo2": "OLMo 2",
    "Olmo3": "OLMo 3",
}


@contextlib.contextmanager
def attempt(family: str, *operations: str):
    """Run what the block does with `family`: it must work, or be refused as `REFUSED` says of any of `operations`."""
    words = next((REFUSED[each][family] for each in operations if family in REFUSED.get(each, {})), None)
    if words is None:
        yield
        return
    with pytest.raises(ValueError, match=words) as caught:
        yield
    message = str(caught.value)
    assert FAMILIES[family][0] in message and ";" in message, message


def table() -> str:
    """What works on which family as a table in Markdown; families and operations that fare alike share a row, a column.

    A cell says "yes", "no", or which variants are refused.
    """
    fare = {}
    for architecture in dict.fromkeys(architecture for architecture, _, _ in FAMILIES.values()):
        variants = {name: variant for name, (own, variant, _) in FAMILIES.items() if own == architecture}
        cells = tuple(_cell(variants, operations) for operations in COLUMNS.values())
        fare.setdefault(cells, []).append(_WRITTEN.get(architecture, architecture))
    columns = {}
    for name, cells in zip(COLUMNS, zip(*fare)):
        columns.setdefault(cells, []).append(name)
    rows = [["", *map(", ".join, columns.values())], [":--"] * (1 + len(columns))]
    rows += [[", ".join(names), *cells] for names, *cells in zip(fare.values(), *columns)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(variants: dict[str, str], operations: tuple[str, ...]) -> str:
    """ "yes", "no", or which of the `variants` (their descriptions by name) are refused."""
    refused = [name for name in variants if any(name in REFUSED.get(each, {}) for each in operations)]
    if not refused:
        return "yes"
    return "no" if len(refused) == len(variants) else "not " + ", ".join(variants[name] or "plain" for name in refused)


def main() -> int:
    """Write the table into README.md."""
    path = files.ROOT / "README.md"
    files.write_text(path, published.replaced(path.read_text(encoding="utf-8"), "families", table(), path.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
