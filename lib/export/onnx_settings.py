"""`genai_config.json`: what onnxruntime-genai needs to know of a folder with an ONNX file, to run it by itself.

Source: config.h of onnxruntime-genai 0.18.
"""

import json
from pathlib import Path

from torch import nn

from lib import files
from lib.models import blocks

NAME = "genai_config.json"
# the types that it knows as plain decoders; of another, it runs the graph in the same way under the first name
_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "granite", "olmo", "smollm3")


def write(model: nn.Module, tokenizer, folder: Path, file: str) -> None:
    """Write the settings of `model` beside `file` in `folder`."""
    config = blocks.config(model)
    heads = config.num_attention_heads
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None) or config.eos_token_id or tokenizer.eos_token_id
    first_end = ends[0] if isinstance(ends, list) else ends
    kind = config.model_type if config.model_type in _TYPES else _TYPES[0]
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": file,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "hidden_size": config.hidden_size,
        "num_attention_heads": heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
        },
    }  # fmt: skip
    settings = {
        "model": {
            "type": kind,
            "bos_token_id": _first(tokenizer.bos_token_id, config.bos_token_id, first_end),
            "eos_token_id": ends,
            "pad_token_id": _first(tokenizer.pad_token_id, config.pad_token_id, first_end),
            "context_length": config.max_position_embeddings,
            "vocab_size": config.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": False, "max_length": config.max_position_embeddings, "num_beams": 1,
            "past_present_share_buffer": False, "repetition_penalty": 1.0,
        },
    }  # fmt: skip
    files.write_text(folder / NAME, json.dumps(settings, indent=1))


def _first(*values):
    return next((value for value in values if value is not None), 0)
