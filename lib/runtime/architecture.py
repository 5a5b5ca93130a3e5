"""Reads a model's architecture from its configuration, as the family's own class in transformers does.

A setting that changes the forward pass is either implemented or refused, and an unknown key is refused. Needs neither
torch nor transformers, so that a process that only generates does without them.
"""

from dataclasses import dataclass

from lib.runtime import after_heads, config_values, rope_frequencies
from lib.runtime.after_heads import AfterHeads
from lib.runtime.families import ACTIVATIONS, ATTENTION, FAMILIES, HARMLESS, KINDS, LINEARS, ONLY, ROTARY, WORDS, Family
from lib.runtime.rope_frequencies import wrong

# rotary embeddings with frequencies unknown here, and what to do
_ELSEWHERE = {"yarn": " (load it with sources.models.load, then use runtime.pack_)"} | dict.fromkeys(
    ("dynamic", "longrope"), ", which changes with the length"
)


@dataclass(frozen=True)
class Architecture:
    """A model's shape and what its parts compute.

        size: of a head. linears, norms: by the names of `LINEARS` and `NORMS`, the module of each in a block; several
        may share one, whose rows they then have in this order. biases: linear layers that have one. offset: what is
        added to the weights of norms. scaled: whether embeddings are multiplied with the root of the hidden size.
        windows: per block how many positions a query sees, its own included; 0 for all. rotations: kind of attention ->
        complete settings of its rotary embedding. rotation: per block which of them it takes. rotated: dimensions of a
        head that are rotated.
    query_scale: factor of the queries. after_heads: what happens to the heads before the output matrix.
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
    linears: dict[str, str]
    biases: tuple[str, ...]
    norms: dict[str, str]
    offset: float
    scaled: bool
    windows: tuple[int, ...]
    rotations: dict[str, dict]
    rotation: tuple[int, ...]
    rotated: int
    query_scale: float
    after_heads: AfterHeads

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a linear layer, by the names of `LINEARS`."""
        queries, keys = self.heads * self.size, self.key_heads * self.size
        if name not in LINEARS:
            return self.after_heads.shape(name, self.size, self.hidden)
        return {
            "query": (queries, self.hidden),
            "key": (keys, self.hidden),
            "value": (keys, self.hidden),
            "output": (self.hidden, queries),
            "gate": (self.intermediate, self.hidden),
            "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }[name]

    def modules(self) -> dict[str, list[str]]:
        """The linear modules of a block, each with what it holds, in order of rows."""
        found = {}
        for name, path in self.linears.items():
            found.setdefault(path, []).append(name)
        return found

    def width(self, norm: str) -> int:
        """Numbers in a norm's weight, by the names of `NORMS`."""
        return self.size if norm in ("query_norm", "key_norm") else self.hidden


def read(config: dict, *, tables=rope_frequencies.TABLES) -> Architecture:
    """The architecture of a configuration: config.json, or `to_dict` of one of transformers'.

    tables: allowed types of rotary embeddings. Raises ValueError for families, parts and keys that the engine doesn't
    support, and for invalid values.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        refuse(f"model type {kind!r} (of the families {', '.join(FAMILIES)})", _name(config))
    family = FAMILIES[kind]
    _known(config, family)
    found = family.defaults | {key: value for key, value in config.items() if key in family.defaults}
    sizes = _sizes(found, family)
    if not 0 <= config.get("initializer_range", 0.02) <= 1:
        raise wrong("initializer_range", config["initializer_range"], "a number from 0.0 to 1.0")
    padding = config.get("pad_token_id", family.padding)
    known = type(padding) is int and -sizes["vocabulary"] <= padding < sizes["vocabulary"]
    if padding is not None and not known:
        raise wrong("pad_token_id", padding, f"a token of the {sizes['vocabulary']} in the vocabulary, or null,")
    kinds, windows = _windows(found, sizes["blocks"], sizes["limit"])
    rope = _rotations(config, family, kinds, sizes["limit"], tables)
    _check_parts(found, family, sizes, rope, _name(config))
    own = {name for name in LINEARS if found.get("attention_bias" if name in ATTENTION else "mlp_bias")}
    scalar = config_values.whole(found, "query_pre_attn_scalar") if "query_pre_attn_scalar" in found else sizes["size"]
    after = after_heads.read(found, sizes["heads"], sizes["size"])
    return Architecture(
        family=kind, **sizes, eps=config_values.number(found, "rms_norm_eps"),
        activation=ACTIVATIONS[_activation(found)], tied=found["tie_word_embeddings"],
        linears=family.linears | after.linears(sizes["heads"]), biases=tuple(sorted(family.biases | own)),
        norms=family.norms, offset=family.offset, scaled=family.scaled, windows=windows, rotations=rope,
        rotation=tuple([*rope].index(kind) if family.local else 0 for kind in kinds),
        rotated=_rotated(rope, sizes["size"]), query_scale=scalar**-0.5, after_heads=after,
    )  # fmt: skip


def refuse(part: str | None, model: str) -> None:
    """Raise ValueError for a part that the engine does not compute."""
    if part:
        raise ValueError(
            f"{model} has {part}; the packed engine computes Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma 3 (text), and "
            "Llama with a layer or a gate on each head; run this model with its own generate."
        )


def _name(config: dict) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "the model"


def _known(config: dict, family: Family) -> None:
    """Refuse unknown keys, and known ones at values that would change the outputs."""
    for key, value in config.items():
        if key in family.unlisted and value is None:
            raise wrong(key, value, "a whole number from 1, or no such key,")
        kinds = family.kinds.get(key, KINDS.get(key))
        if kinds and type(value) not in kinds:
            raise wrong(key, value, " or ".join(WORDS[kind] for kind in kinds))
        if key in family.defaults or key in ROTARY or key in HARMLESS:
            continue
        if key not in ONLY:
            refuse(f"{key}={value!r} in its configuration, which this engine does not know", _name(config))
        if not any(type(value) is type(each) and value == each for each in ONLY[key]):  # there, 1 differs from True
            refuse(f"{key}={value!r} in its configuration", _name(config))


def _sizes(found: dict, family: Family) -> dict:
    heads, hidden = config_values.whole(found, "num_attention_heads"), config_values.whole(found, "hidden_size")
    if hidden % heads and family.divides:
        raise wrong("hidden_size", hidden, f"a multiple of the {heads} heads")
    keys = heads if found["num_key_value_heads"] is None else config_values.whole(found, "num_key_value_heads")
    if heads % keys:
        raise wrong("num_key_value_heads", keys, f"a divisor of the {heads} heads")
    if found["head_dim"] is None and family.defaults["head_dim"] is not None:
        raise wrong("head_dim", None, "a whole number from 1")
    size = max(1, hidden // heads) if found["head_dim"] is None else config_values.whole(found, "head_dim")
    return {
        "hidden": hidden,
        "heads": heads,
        "key_heads": keys,
        "size": size,
        "intermediate": config_values.whole(found, "intermediate_size"),
        "blocks": config_values.whole(found, "num_hidden_layers"),
        "vocabulary": config_values.whole(found, "vocab_size"),
        "limit": config_values.whole(found, "max_position_embeddings"),
    }


def _windows(found: dict, blocks: int, limit: int) -> tuple[list[str], tuple[int, ...]]:
    """For each block its kind of attention and its window (0 for all positions), as the classes derive them."""
    window = None if found.get("sliding_window") is None else config_values.whole(found, "sliding_window")
    if "layer_types" not in found:  # one window for every block, or none
        kinds = ["full_attention" if window is None else "sliding_attention"] * blocks
    elif "use_sliding_window" in found:
        window = window if config_values.flag(found, "use_sliding_window") else None
        first = config_values.whole(found, "max_window_layers", least=0)
        kinds = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in range(blocks)]
    else:
        pattern = config_values.whole(found, "sliding_window_pattern")
        kinds = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(blocks)]
    if found.get("layer_types") is not None:
        kinds = found["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != blocks or not {*kinds} <= {"full_attention", "sliding_attention"}:
        raise wrong("layer_types", kinds, f"one of full_attention and sliding_attention for each of {blocks} blocks")
    if window is None and "sliding_attention" in kinds:
        raise wrong("sliding_window", None, "a whole number from 1 where layers slide")
    return kinds, tuple(window if kind == "sliding_attention" and window < limit else 0 for kind in kinds)


def _rotations(config: dict, family: Family, kinds: list[str], limit: int, tables) -> dict[str, dict]:
    """The rotary embeddings of a configuration by kind of attention; refuses those whose frequencies are not known."""
    if family.local:
        found = {kind: rope_frequencies.local(config, kind, limit) for kind in sorted({*kinds})}
    else:
        found = {"every": rope_frequencies.settings(config, limit)}
    for rope in found.values():
        kind, part = rope["rope_type"], rope.get("partial_rotary_factor", 1)
        if kind not in tables:
            refuse(f"a scaled rotary embedding {kind!r}{_ELSEWHERE.get(kind, '')}", _name(config))
        if part != 1 and (kind != "default" or not family.partial):
            refuse(f"a rotary embedding of a part of each head ({part})", _name(config))
        if family.partial and kind != "default":
            refuse(f"a scaled rotary embedding {kind!r}", _name(config))
    return found


def _rotated(rotations: dict[str, dict], size: int) -> int:
    """How many dimensions of each head are rotated; an even number, at most its size."""
    part = next(iter(rotations.values())).get("partial_rotary_factor", 1)
    count = int(size * part)
    if count % 2 or not 0 < count <= size:
        raise wrong("partial_rotary_factor", part, f"a share that rotates an even number of the {size} dimensions")
    return count


def _activation(found: dict) -> str:
    return found["hidden_activation" if "hidden_activation" in found else "hidden_act"]


def _check_parts(found: dict, family: Family, sizes: dict, rope: dict, name: str) -> None:
    """Refuse what the kernels don't compute."""
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        if key in found:
            config_values.flag(found, key)
    if not isinstance(_activation(found), str) or _activation(found) not in ACTIVATIONS:
        key = "hidden_activation" if "hidden_activation" in found else "hidden_act"
        refuse(f"activation {key}={found[key]!r}, where {', '.join(ACTIVATIONS)} are computed", name)
    if sizes["size"] % 16:
        refuse(f"heads of size {sizes['size']}, no multiple of 16", name)
    if len({*family.linears.values()}) < len(family.linears) and sizes["intermediate"] % 16:
        refuse(f"an intermediate size of {sizes['intermediate']}, no multiple of 16, in a fused layer", name)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        refuse(f"{key}={found[key]!r}" if found.get(key) is not None else None, name)
    refuse("attention to later positions" if found.get("use_bidirectional_attention") else None, name)
