"""Families that the packed engine supports: what their configurations mean, with transformers' defaults.

`architecture.read` uses this table. Each key of a configuration is one that changes the forward pass
(`Family.defaults`, `ROTARY`), one that changes nothing (`HARMLESS`), or one that is allowed at a single value
(`ONLY`); a model with any other key is refused.
"""

from dataclasses import dataclass, field

from lib.runtime import after_heads

# parts of a block as the kernels know them -> their modules in most families
LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
FUSED = LINEARS | dict.fromkeys(("query", "key", "value"), "self_attn.qkv_proj")
FUSED |= dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")
ATTENTION = frozenset({"query", "key", "value", "output"})
# the last two stand behind attention and MLP, before what they give is added
NORMS = ("first_norm", "second_norm", "query_norm", "key_norm", "attended_norm", "fed_norm")
BEFORE = {"first_norm": "input_layernorm", "second_norm": "post_attention_layernorm"}
OF_HEADS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
AROUND = {"first_norm": "input_layernorm", "second_norm": "pre_feedforward_layernorm",
          "attended_norm": "post_attention_layernorm", "fed_norm": "post_feedforward_layernorm"}  # fmt: skip
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}  # transformers' names -> the kernels'

ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Family:
    """A family as transformers has it.

    model: class of its models. defaults: keys that change the forward pass, with what its configuration class takes
    where they are absent; "head_dim" None stands for hidden size / heads. norms, linears: the modules of each block.
    biases: linear layers that always have a bias (others have one where `attention_bias` or `mlp_bias` says so).
    unlisted: keys that its models read though the class does not list them, so that null is no value. divides: whether
    the hidden size must be a multiple of the heads. partial: whether a part of each head may be rotated. local: whether
    blocks that slide have a rotary embedding of their own. offset: what is added to the weights of norms. scaled:
    whether embeddings are multiplied with the root of the hidden size. padding: the token that pads where the file
    names none. kinds: as `KINDS`, for keys that its class takes in another way.
    """

    model: str
    defaults: dict
    norms: dict = field(default_factory=lambda: BEFORE)
    linears: dict = field(default_factory=lambda: LINEARS)
    biases: frozenset = frozenset()
    unlisted: tuple[str, ...] = ()
    divides: bool = False
    partial: bool = False
    local: bool = False
    offset: float = 0.0
    scaled: bool = False
    padding: int | None = None
    kinds: dict = field(default_factory=lambda: {"attention_dropout": _NUMBER})


_NUMBER, _NULL = (float, int), type(None)
_LLAMA_KINDS = {"attention_dropout": (*_NUMBER, _NULL), "pretraining_tp": (int, _NULL)}
_SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
_LLAMA = {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048, "num_key_value_heads": None,
          "attention_bias": False, "mlp_bias": False}  # fmt: skip
_MISTRAL = {"vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072}
_QWEN = _SIZES | _WINDOWS | {"vocab_size": 151936}
_PHI = {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_key_value_heads": None,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": None,
        "original_max_position_embeddings": 4096}  # fmt: skip
_GEMMA = {key: value for key, value in _SIZES.items() if key != "hidden_act"} | {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072, "tie_word_embeddings": True, "attention_bias": False,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": None, "sliding_window_pattern": 6,
    "final_logit_softcapping": None, "attn_logit_softcapping": None, "use_bidirectional_attention": False,
    "rope_local_base_freq": 10000.0,
}  # fmt: skip

FAMILIES = {
    "llama": Family("LlamaForCausalLM", _SIZES | _LLAMA, divides=True, kinds=_LLAMA_KINDS),
    "thimble_headwise": Family(
        "HeadwiseForCausalLM", _SIZES | _LLAMA | after_heads.DEFAULTS["thimble_headwise"], divides=True,
        kinds=_LLAMA_KINDS,
    ),
    "thimble_gated": Family(
        "GatedForCausalLM", _SIZES | _LLAMA | after_heads.DEFAULTS["thimble_gated"], divides=True, kinds=_LLAMA_KINDS
    ),
    "mistral": Family(
        "MistralForCausalLM", _SIZES | _MISTRAL | {"num_key_value_heads": 8, "sliding_window": 4096},
        kinds={"attention_dropout": _NUMBER, "num_key_value_heads": (int,)},
    ),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN, biases=frozenset({"query", "key", "value"}), unlisted=("head_dim",)),
    "qwen3": Family("Qwen3ForCausalLM", _QWEN | {"head_dim": 128, "attention_bias": False}, norms=BEFORE | OF_HEADS),
    "phi3": Family(
        "Phi3ForCausalLM", _SIZES | _PHI, linears=FUSED, unlisted=("head_dim",), partial=True, padding=32000,
        kinds=dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), _NUMBER)
        | {"original_max_position_embeddings": (int,)},
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM", _GEMMA, norms=AROUND | OF_HEADS, divides=True, local=True, offset=1.0, scaled=True,
        padding=0,
        kinds={"attention_dropout": _NUMBER, "num_key_value_heads": (int,),
               "use_bidirectional_attention": (bool, _NULL)},
    ),
}  # fmt: skip

# what transformers' classes take where a key changes nothing that is computed
WORDS = {bool: "true or false", int: "a whole number", float: "a number", dict: "an object", _NULL: "null"}
KINDS = {"use_cache": (bool,), "initializer_range": (float,), "num_labels": (int, bool), "id2label": (dict, _NULL)}

ONLY = {"is_causal": (True,), "is_decoder": (True,), "is_encoder_decoder": (False,), "chunk_size_feed_forward": (0,),
        "add_cross_attention": (False,), "pruned_heads": ({}, None), "per_layer_config": (None,),
        "output_attentions": (False, None), "return_dict": (True,)}  # fmt: skip
# who wrote the file, and with what
_ORIGIN = (
    "_name_or_path name_or_path _commit_hash model_type architectures transformers_version dtype torch_dtype "
    "quantization_config transformers.js_config is_llama_config unsloth_fixed unsloth_version "
)
_TRAINING = "initializer_range attention_dropout resid_pdrop embd_pdrop pretraining_tp use_bfloat16 "
# how transformers runs a model, what it returns, and other tasks than the next token
_RUNNING = (
    "use_cache cache_implementation attn_implementation _attn_implementation _attn_implementation_autoset "
    "_experts_implementation experts_implementation output_hidden_states torchscript tie_last_hidden_states "
    "id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix "
    "tf_legacy_loss "
)
_TOKENS = "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id unk_token_id "
_UNREAD = "rope_interleaved use_mrope _sliding_window_pattern cross_attention_hidden_size tie_encoder_decoder "
# settings of `generate`, which transformers takes out of a configuration
_GENERATION = (
    "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
    "encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id "
    "forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams "
    "num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate "
    "suppress_tokens temperature top_k top_p typical_p assistant_confidence_threshold assistant_lookbehind "
    "num_assistant_tokens num_assistant_tokens_schedule target_lookbehind"
)
HARMLESS = frozenset((_ORIGIN + _TRAINING + _RUNNING + _TOKENS + _UNREAD + _GENERATION).split())
