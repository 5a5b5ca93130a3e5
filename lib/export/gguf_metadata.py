"""What a GGUF file says about a model: llama.cpp's names for its configuration and its tensors, and what it can't say.

    transformers' model_type   llama.cpp's architecture
    llama, mistral             llama    rows of queries and keys in pairs, as its rotation takes them
    qwen2, qwen3               the same
    phi3                       phi3     queries, keys and values in one tensor, gate and up in another
    gemma3_text                gemma3   one is added to the weights of its norms

Windows: llama.cpp has them for Gemma 3 alone, in every layer but each n-th. For the others the file's context ends with
the window: up to there all texts are computed alike. Rotations that were not tried against llama.cpp are refused.
Source: the converter and src/models of llama.cpp.
"""

from collections.abc import Callable

import gguf
import torch
from torch import Tensor, nn

from lib.models import blocks

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
# those that were tried against llama.cpp; the file holds nothing else of YaRN's than is listed
_ROTATIONS = {
    gguf.MODEL_ARCH.LLAMA: ("default", "linear", "llama3", "yarn"),
    gguf.MODEL_ARCH.QWEN2: ("default", "yarn"),
    gguf.MODEL_ARCH.QWEN3: ("default", "yarn"),
    gguf.MODEL_ARCH.PHI3: ("default",),
    gguf.MODEL_ARCH.GEMMA3: ("default", "linear"),
}
_OF_YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"}
_PERIOD = 6  # of Gemma 3's layers that see the whole text, where a file names none
_LARGEST_GEMMA = 62  # blocks of the one Gemma 3 whose attention llama.cpp scales by another number


def architecture(model: nn.Module) -> gguf.MODEL_ARCH:
    """llama.cpp's architecture for `model`; ValueError for models that it, or this file, does not know."""
    kind = blocks.config(model).model_type
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"{type(model).__name__} is of type {kind!r}; GGUF files are written of {', '.join(ARCHITECTURES)}; "
            "write it with export.compressed_tensors.save or export.plain.save."
        )
    return ARCHITECTURES[kind]


def names(model: nn.Module) -> Callable[[str], str]:
    """A function from the name of a tensor in `model` to its name in the file."""
    found = gguf.get_tensor_name_map(architecture(model), blocks.config(model).num_hidden_layers)

    def rename(name: str) -> str:
        other = found.get_name(name, try_suffixes=(".weight", ".bias"))
        if other is None:
            raise ValueError(
                f"{name} of {type(model).__name__} has no place in a GGUF file of {architecture(model).name.lower()}; "
                "only tensors of that architecture have; remove it, or write the model with export.plain.save."
            )
        return other

    return rename


def row_order(model: nn.Module, name: str, rows: int) -> Tensor | None:
    """The order in which llama.cpp takes the `rows` of the tensor `name`; None for the model's own.

    Its rotation turns neighbouring rows of a head where transformers turns the first half with the second.
    """
    part = name.rsplit(".", 2)[-2]
    if architecture(model) is not gguf.MODEL_ARCH.LLAMA or part not in ("q_proj", "k_proj"):
        return None
    config = blocks.config(model)
    heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).flatten()


def vector(model: nn.Module, name: str, values: Tensor) -> Tensor:
    """Float32 values of a norm or a bias as llama.cpp takes them: one is added to those of Gemma's norms."""
    if architecture(model) is gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
        return values.float() + 1
    return values.float()


def write(writer: gguf.GGUFWriter, model: nn.Module) -> None:
    """Add the configuration of `model` to `writer`."""
    config = blocks.config(model)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(blocks.embeddings(model).num_embeddings)
    writer.add_context_length(context(model))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rotation(writer, model, head)
    if architecture(model) is gguf.MODEL_ARCH.GEMMA3:
        writer.add_sliding_window(config.sliding_window)
        if (period := _period(config)) != _PERIOD:
            writer.add_sliding_window_pattern(period)


def context(model: nn.Module) -> int:
    """Tokens of the longest text that the file's model may read: to the window's end where llama.cpp has no windows."""
    config = blocks.config(model)
    window = getattr(config, "sliding_window", None)
    if architecture(model) is gguf.MODEL_ARCH.GEMMA3 or not window or not getattr(config, "use_sliding_window", True):
        return config.max_position_embeddings
    return min(window, config.max_position_embeddings)


def factors(model: nn.Module) -> Tensor | None:
    """Llama 3's rotation: by what each frequency is divided, float32 [head / 2]; None for other rotations."""
    if _rotation(model)[0].get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # loads torch

    config = blocks.config(model)
    slow, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    places = torch.arange(0, 2 * len(slow), 2, dtype=torch.float64) / (2 * len(slow))
    return (_rotation(model)[0]["rope_theta"] ** -places / slow.double()).float()


def check(model: nn.Module) -> None:
    """Raise ValueError for what the file could not say, or llama.cpp would compute in another way."""
    config, kind = blocks.config(model), architecture(model)
    for rotation in _rotation(model):
        name = rotation.get("rope_type", "default")
        own = {key for key, value in rotation.items() if value is not None} - _OF_YARN if name == "yarn" else set()
        if name not in _ROTATIONS[kind] or own:
            shown = f"{name!r} with {', '.join(sorted(own))}" if own else repr(name)
            raise ValueError(
                f"the rotation of {type(model).__name__} is {shown}; files of {kind.name.lower()} are written with "
                f"{', '.join(_ROTATIONS[kind])} alone; write it with export.compressed_tensors.save."
            )
    if getattr(config, "hidden_act", getattr(config, "hidden_activation", "silu")) not in ("silu", "gelu_pytorch_tanh"):
        raise ValueError(
            f"the activation is {config.hidden_act!r}; llama.cpp has silu and Gemma's; nothing can be done."
        )
    if kind is gguf.MODEL_ARCH.GEMMA3:
        _check_gemma(config)


def _check_gemma(config) -> None:
    wide = config.hidden_size // config.num_attention_heads
    scale = wide if config.num_hidden_layers == _LARGEST_GEMMA else config.head_dim
    if config.query_pre_attn_scalar != scale:
        raise ValueError(
            f"query_pre_attn_scalar={config.query_pre_attn_scalar} with {config.num_hidden_layers} blocks; llama.cpp "
            f"divides by the root of {scale} there (it knows the 27B model by its 62 blocks); write the model with "
            "export.compressed_tensors.save, or prune no blocks."
        )
    if config.attn_logit_softcapping or config.final_logit_softcapping:
        raise ValueError("Gemma 3 with capped logits; llama.cpp caps none there; write it with export.plain.save.")
    _period(config)


def _period(config) -> int:
    """n, where each n-th layer sees the whole text and all others a window; llama.cpp knows no other order."""
    full = [kind == "full_attention" for kind in config.layer_types]
    for period in (_PERIOD, *range(1, len(full) + 2)):
        if full == [(index + 1) % period == 0 for index in range(len(full))]:
            return period
    shown = "".join("F" if each else "w" for each in full)
    raise ValueError(
        f"the layers are {shown} (F sees the whole text, w a window); llama.cpp knows one F after equally many w; "
        "prune whole periods, or write the model with export.compressed_tensors.save."
    )


def _rotation(model: nn.Module) -> list[dict]:
    """The rotation of all layers; for Gemma 3, that of layers that see all of the text, then that of the others."""
    found = dict(blocks.config(model).rope_parameters)
    kinds = [found[name] for name in ("full_attention", "sliding_attention") if name in found]
    return kinds or [found]


def _write_rotation(writer, model, head: int) -> None:
    rotation, *others = _rotation(model)
    writer.add_rope_dimension_count(int(head * (rotation.get("partial_rotary_factor") or 1)))
    writer.add_rope_freq_base(rotation["rope_theta"])
    if others:
        writer.add_rope_freq_base_swa(others[0]["rope_theta"])
    scaled = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}.get(rotation.get("rope_type"))
    if scaled is not None:
        writer.add_rope_scaling_type(scaled)
        writer.add_rope_scaling_factor(rotation["factor"])
    if scaled is gguf.RopeScalingType.YARN:
        writer.add_rope_scaling_orig_ctx_len(rotation["original_max_position_embeddings"])
