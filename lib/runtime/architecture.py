"""What a configuration asks the engine to compute, read as the family's own class in transformers reads it.

A setting that changes the forward pass is computed or refused, and so is a key that this project does not know. Needs
neither torch nor transformers, so that a process which only generates does without them.
"""

from dataclasses import dataclass

from lib.runtime import rotary
from lib.runtime.families import ACTIVATIONS, ATTENTION, FAMILIES, HARMLESS, LINEARS, ONLY, ROTARY, Family
from lib.runtime.rotary import wrong

# rotary embeddings that this file can't tell the frequencies of, and what helps
_ELSEWHERE = {"yarn": " (load it with sources.models.load, then use runtime.pack_)"} | dict.fromkeys(
    ("dynamic", "longrope"), ", which changes with the length"
)


@dataclass(frozen=True)
class Architecture:
    """A model's shape and what its parts compute.

    size: of a head. biases: linear layers (names of `LINEARS`) that have one. norms: names of `NORMS`. windows: per
    block how many positions a query sees, its own included; 0 for all. rotations: complete settings of each rotary
    embedding, with its dimensions "rotated". rotation: per block which of them it takes. query_scale: what queries are
    multiplied with.
    """

    family: str
    hidden: int
    heads: int
    key_heads: int
    size: int
    intermediate: int
    blocks: int
    vocabulary: int
    eps: float
    limit: int
    activation: str
    tied: bool
    biases: tuple[str, ...]
    norms: tuple[str, ...]
    windows: tuple[int, ...]
    rotations: tuple[dict, ...]
    rotation: tuple[int, ...]
    query_scale: float

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a linear layer, by the names of `LINEARS`."""
        queries, keys = self.heads * self.size, self.key_heads * self.size
        return {
            "query": (queries, self.hidden),
            "key": (keys, self.hidden),
            "value": (keys, self.hidden),
            "output": (self.hidden, queries),
            "gate": (self.intermediate, self.hidden),
            "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }[name]

    def width(self, norm: str) -> int:
        """Numbers in a norm's weight, by the names of `NORMS`."""
        return self.size if norm in ("query_norm", "key_norm") else self.hidden


def read(config: dict, *, tables=rotary.TABLES) -> Architecture:
    """The architecture of a configuration, as config.json or `to_dict` of one of transformers' has it.

    tables: types of rotary embeddings that are allowed. Raises ValueError for families, parts and keys that the engine
    doesn't compute, and for values that make no model.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        refuse(f"model type {kind!r} (of the families {', '.join(FAMILIES)})", _name(config))
    family = FAMILIES[kind]
    _known(config, family)
    found = family.defaults | {key: value for key, value in config.items() if key in family.defaults}
    sizes = _sizes(found, family)
    padding = config.get("pad_token_id")
    if padding is not None and not (isinstance(padding, int) and -sizes["vocabulary"] <= padding < sizes["vocabulary"]):
        raise wrong("pad_token_id", padding, f"a token of the {sizes['vocabulary']} in the vocabulary, or null,")
    windows = _windows(found, sizes["blocks"], sizes["limit"])
    rope = rotary.settings(config, sizes["limit"])
    if rope["rope_type"] not in tables:
        refuse(f"a scaled rotary embedding {rope['rope_type']!r}{_ELSEWHERE.get(rope['rope_type'], '')}", _name(config))
    _check_parts(found, sizes, windows, rope, _name(config))
    own = {name for name in LINEARS if found.get("attention_bias" if name in ATTENTION else "mlp_bias")}
    return Architecture(
        family=kind, **sizes, eps=_number(found, "rms_norm_eps"), activation=ACTIVATIONS[found["hidden_act"]],
        tied=found["tie_word_embeddings"], biases=tuple(sorted(family.biases | own)), norms=family.norms,
        windows=windows, rotations=(rope,), rotation=(0,) * sizes["blocks"], query_scale=sizes["size"] ** -0.5,
    )  # fmt: skip


def refuse(part: str | None, model: str) -> None:
    """Raise ValueError for a part that the engine does not compute."""
    if part:
        raise ValueError(
            f"{model} has {part}; the packed engine computes Llama, Mistral, Qwen2 and Qwen3 with full attention; "
            "run this model with its own generate."
        )


def _name(config: dict) -> str:
    return str((config.get("architectures") or ["the model"])[0])


def _known(config: dict, family: Family) -> None:
    """Refuse keys that nobody here knows, and known ones at values that would change what is computed."""
    for key, value in config.items():
        if key in family.unlisted and value is None:
            raise wrong(key, value, "a whole number from 1, or no such key,")
        if key in family.defaults or key in ROTARY or key in HARMLESS:
            continue
        if key not in ONLY:
            refuse(f"{key}={value!r} in its configuration, which this engine does not know", _name(config))
        if value not in ONLY[key]:
            refuse(f"{key}={value!r} in its configuration", _name(config))


def _sizes(found: dict, family: Family) -> dict:
    heads, hidden = _whole(found, "num_attention_heads"), _whole(found, "hidden_size")
    if hidden % heads and family.divides:
        raise wrong("hidden_size", hidden, f"a multiple of the {heads} heads")
    keys = heads if found["num_key_value_heads"] is None else _whole(found, "num_key_value_heads")
    if heads % keys:
        raise wrong("num_key_value_heads", keys, f"a divisor of the {heads} heads")
    if found["head_dim"] is None and family.defaults["head_dim"] is not None:
        raise wrong("head_dim", None, "a whole number from 1")
    size = max(1, hidden // heads) if found["head_dim"] is None else _whole(found, "head_dim")
    return {
        "hidden": hidden,
        "heads": heads,
        "key_heads": keys,
        "size": size,
        "intermediate": _whole(found, "intermediate_size"),
        "blocks": _whole(found, "num_hidden_layers"),
        "vocabulary": _whole(found, "vocab_size"),
        "limit": _whole(found, "max_position_embeddings"),
    }


def _windows(found: dict, blocks: int, limit: int) -> tuple[int, ...]:
    """Per block how many positions a query sees, 0 for all: as the families' classes derive it."""
    if "sliding_window" not in found:
        return (0,) * blocks
    window = None if found["sliding_window"] is None else _whole(found, "sliding_window")
    if "use_sliding_window" not in found:  # one window for every block
        kinds = ["full_attention" if window is None else "sliding_attention"] * blocks
    else:
        window = window if _flag(found, "use_sliding_window") else None
        first = _whole(found, "max_window_layers", least=0)
        kinds = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in range(blocks)]
        kinds = kinds if found["layer_types"] is None else found["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != blocks or not {*kinds} <= {"full_attention", "sliding_attention"}:
        raise wrong("layer_types", kinds, f"one of full_attention and sliding_attention for each of {blocks} blocks")
    if window is None and "sliding_attention" in kinds:
        raise wrong("sliding_window", None, "a whole number from 1 where layers slide")
    return tuple(window if kind == "sliding_attention" and window < limit else 0 for kind in kinds)


def _check_parts(found: dict, sizes: dict, windows, rope: dict, name: str) -> None:
    """Refuse what the kernels don't compute."""
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        if key in found:
            _flag(found, key)
    if found["hidden_act"] not in ACTIVATIONS:
        refuse(f"activation {found['hidden_act']!r}", name)
    if sizes["size"] % 16:
        refuse(f"heads of size {sizes['size']}, no multiple of 16", name)
    if any(windows):
        refuse(f"sliding-window attention ({max(windows)} positions)", name)
    if rope.get("partial_rotary_factor", 1) != 1:
        refuse(f"a rotary embedding of a part of each head ({rope['partial_rotary_factor']})", name)


def _whole(found: dict, key: str, least: int = 1) -> int:
    value = found[key]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise wrong(key, value, f"a whole number from {least}")
    return value


def _number(found: dict, key: str) -> float:
    value = found[key]
    if not isinstance(value, float) or not 0 <= value < float("inf"):
        raise wrong(key, value, "a number from 0.0")
    return value


def _flag(found: dict, key: str) -> bool:
    if not isinstance(found[key], bool):
        raise wrong(key, found[key], "true or false")
    return found[key]
