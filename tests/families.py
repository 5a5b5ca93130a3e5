"""Tiny random models of every family of decoders that transformers builds from blocks, in the settings people use.

`FAMILIES` holds, by name, the architecture (as in `{architecture}ForCausalLM`), what this variant of it is (""
for the plain one), and its settings. Sizes that are not given are those of `tests.tiny`. Windows are 12 positions
long and scaled rotations begin at 64, so that texts of 72 tokens show what they do. Nothing is dropped
at random (OPT and Seed-OSS would), so that the losses of a training are those of plain transformers.
"""

import torch
import transformers

from tests import tiny

WINDOW = {"sliding_window": 12}
TIED = {"tie_word_embeddings": True}
_BASE = {"tie_word_embeddings": False, "intermediate_size": 96, "pad_token_id": None}
TEXT = tiny.tokens(2, 72)


def _rope(kind: str, **settings) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


FAMILIES = {
    "llama": ("Llama", "", {}),
    "llama_biases": ("Llama", "biases, tied", {**TIED, "attention_bias": True, "mlp_bias": True}),
    "llama_wide_heads": ("Llama", "wide heads", {"head_dim": 32}),
    "llama_odd_sizes": (
        "Llama",
        "odd sizes",
        {
            "vocab_size": 267,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
        },
    ),
    "llama_one_block": ("Llama", "one block", {"num_hidden_layers": 1}),
    "llama_3": (
        "Llama",
        "Llama 3 rotation",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "llama_yarn": ("Llama", "YaRN", _rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama_linear": ("Llama", "linear rotation", _rope("linear", factor=2.0)),
    "qwen2": ("Qwen2", "", TIED),
    "qwen2_windows": ("Qwen2", "windows", {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("Qwen3", "", {**TIED, "head_dim": 32}),
    "qwen3_windows": (
        "Qwen3",
        "windows",
        {**WINDOW, "head_dim": 16, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "mistral": ("Mistral", "", {"sliding_window": None, "head_dim": 32}),
    "mistral_windows": ("Mistral", "windows", WINDOW),
    "ministral": ("Ministral", "", {**WINDOW, "head_dim": 16}),
    "ministral3": (
        "Ministral3",
        "",
        {
            "head_dim": 16,
            **_rope("yarn", factor=8.0, original_max_position_embeddings=64, llama_4_scaling_beta=0.1),
        },
    ),
    "phi": ("Phi", "", {"partial_rotary_factor": 0.5}),
    "phi_norms": ("Phi", "query and key norms", {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("Phi3", "", {}),
    "phi3_windows": (
        "Phi3",
        "windows, partial rotation",
        {**WINDOW, "partial_rotary_factor": 0.75, "num_attention_heads": 2},
    ),
    "phi3_longrope": (
        "Phi3",
        "LongRoPE",
        {
            "original_max_position_embeddings": 64,
            **_rope(
                "longrope",
                original_max_position_embeddings=64,
                short_factor=[1 + 0.1 * i for i in range(8)],
                long_factor=[2 + 0.3 * i for i in range(8)],
            ),
        },
    ),
    "gemma": ("Gemma", "", {**TIED, "head_dim": 24}),
    "gemma2": (
        "Gemma2",
        "",
        {
            **TIED,
            **WINDOW,
            "head_dim": 24,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        "",
        {
            **TIED,
            **WINDOW,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "vaultgemma": ("VaultGemma", "", {**WINDOW, "head_dim": 24, "query_pre_attn_scalar": 24}),
    "olmo": ("Olmo", "clipped queries, keys and values", {"clip_qkv": 0.5}),
    "olmo2": ("Olmo2", "", {}),
    "olmo3": ("Olmo3", "", WINDOW),
    "granite": (
        "Granite",
        "",
        {
            **TIED,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.5,
        },
    ),
    "granite_windows": ("GraniteSWA", "", WINDOW),
    "stablelm": ("StableLm", "", {"partial_rotary_factor": 0.25, "use_qkv_bias": True}),
    "stablelm_parallel": (
        "StableLm",
        "norms of each head, parallel",
        {"partial_rotary_factor": 0.25, "qk_layernorm": True, "use_parallel_residual": True},
    ),
    "gpt_neox": ("GPTNeoX", "", {"rotary_pct": 0.25}),
    "gpt_neox_sequential": ("GPTNeoX", "sequential", {"rotary_pct": 0.25, "use_parallel_residual": False}),
    "starcoder2": ("Starcoder2", "", {**TIED, **WINDOW}),
    "cohere": ("Cohere", "", {**TIED, "logit_scale": 0.3, "use_qk_norm": True}),
    "cohere2": ("Cohere2", "", {**TIED, **WINDOW, "logit_scale": 0.3}),
    "falcon": (
        "Falcon",
        "",
        {
            **TIED,
            "alibi": False,
            "bias": True,
            "multi_query": True,
            "new_decoder_architecture": False,
            "parallel_attn": True,
        },
    ),
    "falcon_new": (
        "Falcon",
        "new decoder",
        {**TIED, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_alibi": (
        "Falcon",
        "ALiBi",
        {
            **TIED,
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "new_decoder_architecture": False,
            "parallel_attn": False,
        },
    ),
    "opt": ("OPT", "", {**TIED, "dropout": 0.0, "ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1}),
    "opt_projected": (
        "OPT",
        "projected embeddings, norms behind (350M)",
        {
            **TIED,
            "do_layer_norm_before": False,
            "dropout": 0.0,
            "ffn_dim": 96,
            "init_std": 0.1,
            "word_embed_proj_dim": 32,
        },
    ),
    "smollm3": ("SmolLM3", "", {**TIED, "no_rope_layers": [1, 1, 1, 0]}),
    "glm": ("Glm", "", {"head_dim": 16}),
    "glm4": ("Glm4", "", {"head_dim": 16}),
    "helium": ("Helium", "", {"head_dim": 16}),
    "nemotron": ("Nemotron", "", {}),
    "exaone4": ("Exaone4", "", {**WINDOW, "sliding_window_pattern": 2}),
    "arcee": ("Arcee", "", {}),
    "apertus": (
        "Apertus",
        "",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "seed_oss": ("SeedOss", "", {"attention_dropout": 0.0, "head_dim": 16, "residual_dropout": 0.0}),
    "ernie": ("Ernie4_5", "", {"head_dim": 16}),
    "hunyuan": ("HunYuanDenseV1", "", {"head_dim": 16}),
}


def build(name: str, *, seed: int = 0, **overrides):
    """A random model of the family `name` of `FAMILIES`, in eval mode, with its tokenizer as `model.tokenizer`."""
    architecture, _, settings = FAMILIES[name]
    return tiny._build(architecture, seed, {**_BASE, **settings, **overrides})


def build_short(name: str, *, seed: int = 0, **overrides):
    """As `build`, with two of the four blocks where these hold every kind of block that the four hold.

    Time goes with the blocks: for tests of what happens to each of them.
    """
    architecture, _, settings = FAMILIES[name]
    whole = getattr(transformers, f"{architecture}ForCausalLM").config_class(**{**tiny._SIZES, **_BASE, **settings})
    kinds = getattr(whole, "layer_types", None) or [None] * whole.num_hidden_layers
    kept = 2 if set(kinds[:2]) == set(kinds) and "no_rope_layers" not in settings else len(kinds)
    listed = {"layer_types": kinds[:kept]} if "layer_types" in settings else {}
    return build(name, seed=seed, num_hidden_layers=min(kept, len(kinds)), **listed, **overrides)


def group_size(name: str) -> int:
    """Columns of a grid: as many as every layer of the family and the packed engine can take."""
    return -1 if name == "llama_odd_sizes" else 32


@torch.no_grad()
def logits(model, ids: torch.Tensor = TEXT) -> torch.Tensor:
    """What plain transformers computes: float32 [texts, positions, vocabulary], without a cache."""
    return model(input_ids=ids, use_cache=False).logits.float()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of the difference, as a share of the norm of `wanted`."""
    return float((found - wanted).norm() / wanted.norm())


def reloaded(folder):
    """The checkpoint in `folder` as plain transformers opens it, in float32."""
    from transformers import AutoModelForCausalLM

    from lib.sources.models import quiet

    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
