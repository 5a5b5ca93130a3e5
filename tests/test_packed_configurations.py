"""Every key of every supported family's configuration: the packed engine computes what transformers does, or refuses.

Each key is changed to another value that a configuration might have, in a folder's config.json and on a model in
memory; an answer must be the one that transformers gives from there on.
"""

import copy
import dataclasses
import functools
import json

import pytest
import torch

from lib import runtime
from lib.runtime.families import FAMILIES
from lib.sources import models
from tests import tiny

NEAR = 0.01  # of the logits' norm: keys and values in bfloat16
MAKE = {
    "llama": tiny.llama,
    "mistral": functools.partial(tiny.mistral, sliding_window=None),
    "qwen2": tiny.qwen2,
    "qwen3": tiny.qwen3,
    "phi3": tiny.phi3,
    "gemma3_text": tiny.gemma3,
    "thimble_headwise": functools.partial(tiny.architecture, "headwise"),
    "thimble_gated": functools.partial(tiny.architecture, "head_gate"),
}
SLIDING = ["sliding_attention", "full_attention"] * 2
SCALED = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
COMPUTED = {  # (key, place of the value) that a family which has the key computes with, instead of refusing it
    ("rms_norm_eps", 0), ("rope_theta", 0), ("max_position_embeddings", 0), ("eos_token_id", 0), ("dtype", 0),
    ("sliding_window", 0), ("sliding_window", 1), ("layer_types", 0), ("use_sliding_window", 0),
    ("max_window_layers", 0), ("hidden_activation", 0), ("query_pre_attn_scalar", 0), ("sliding_window_pattern", 0),
    ("rope_local_base_freq", 0), ("head_activation", 0), ("head_activation", 1), ("head_activation", 2),
    ("head_residual", 0),
}  # fmt: skip

# What a key may say instead; each is tried alone
OTHER = {
    "vocab_size": [255, 260, 0, 256.0],
    "hidden_size": [32, 96, -64, "64"],
    "intermediate_size": [64, 160, 0],
    "num_hidden_layers": [3, 5, 0, True],
    "num_attention_heads": [2, 8, 3, 0],
    "num_key_value_heads": [1, 4, 3, 0, None],
    "head_dim": [32, 24, 0, None],
    "hidden_act": ["gelu", "gelu_pytorch_tanh", "relu", None],
    "max_position_embeddings": [300, 0, "512"],
    "rms_norm_eps": [0.5, -1.0, None],
    "tie_word_embeddings": [False, None],
    "attention_bias": [True],
    "mlp_bias": [True],
    "rope_parameters": [
        {"rope_theta": 100.0}, {"type": "linear", "factor": 4.0}, SCALED, LLAMA3, {**SCALED, "rope_type": "dynamic"},
        {**SCALED, "rope_type": "yarn", "original_max_position_embeddings": 128}, {**SCALED, "factor": 0},
        {"rope_type": "default", "type": "linear", "factor": 4.0}, {"full_attention": SCALED}, {}, None, "linear",
        {"rope_theta": 100.0, "partial_rotary_factor": 0.5}, {**SCALED, "factor": None}, {"rope_type": "unheard of"},
        {"full_attention": SCALED, "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}},
        {"full_attention": None, "sliding_attention": {"type": "linear", "factor": 2.0}},
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0},
        {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}, {"partial_rotary_factor": 0.3},
    ],
    "rope_scaling": [{"type": "linear", "factor": 4.0}, {"rope_type": "dynamic", "factor": 2.0}, LLAMA3, {}, None],
    "hidden_activation": ["silu", "gelu", None],
    "head_activation": ["relu", "silu", "identity", "tanh", None],
    "head_residual": [True, None],
    "attention_gate": ["element", "both", None],
    "use_bidirectional_attention": [True, None],
    "rope_theta": [100.0, 500000, None, 0],
    "partial_rotary_factor": [0.5, 1.0, 0.3, 2.0, 0],
    "rope_local_base_freq": [100.0, None],
    "sliding_window": [12, 40, 4096, 0, None],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 2],
    "layer_types": [SLIDING, SLIDING[:3], ["full_attention"] * 4, ["chunked_attention"] * 4, None],
    "sliding_window_pattern": [2, 1, 0],
    "_sliding_window_pattern": [2],
    "query_pre_attn_scalar": [64, 0, None],
    "logits_scaling": [0.5],
    "attn_logit_softcapping": [5.0],
    "final_logit_softcapping": [5.0],
    "is_causal": [False, True],
    "is_decoder": [False, True],
    "per_layer_config": [{"1": {"intermediate_size": 64}}, None],
    "attention_chunk_size": [8],
    "chunk_size_feed_forward": [1],
    "original_max_position_embeddings": [64],
    "no_rope_layers": [[1, 1, 1, 0]],
    "initializer_range": [0.5],
    "attention_dropout": [0.5],
    "resid_pdrop": [0.5],
    "embd_pdrop": [0.5],
    "pretraining_tp": [2],
    "use_cache": [False],
    "bos_token_id": [3, None],
    "eos_token_id": [3, [3, 4], None],
    "pad_token_id": [3, None, 300, -1],
    "transformers_version": ["4.30.0"],
    "architectures": [None, ["GPT2LMHeadModel"]],
    "output_hidden_states": [True],
    "return_dict": [False],
    "dtype": ["float64", None],
    "is_encoder_decoder": [True],
    "id2label": [{"0": "yes"}],
    "label2id": [{"yes": 0}],
    "problem_type": ["regression"],
    "model_type": ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "gpt2", "unheard of"],
    "auto_map": [{"AutoModelForCausalLM": "evil.Model"}],
    "temperature": [0.5],
}  # fmt: skip
# what our own architectures add to Llama, and what the size of the added matrices depends on; the rest is Llama's code
OWN = ("head_activation", "head_residual", "attention_gate", "num_attention_heads", "head_dim", "model_type")
CASES = [
    (family, key, place)
    for family in FAMILIES
    for key in (OWN if family.startswith("thimble") else OTHER)
    for place in range(len(OTHER[key]))
]


def configuration(family):
    """The class of a family's configuration."""
    return type(MAKE[family]().config)


@functools.cache
def original(family):
    """A tiny model whose numbers bfloat16 holds, in float32."""
    model = MAKE[family]()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each family."""
    root = tmp_path_factory.mktemp("families")
    return {family: tiny.save(root / family, original(family)) for family in FAMILIES}


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.tokens(1, 40), use_cache=False).logits[0].float()


def answer(make):
    """The logits of a session on what `make` gives, None where it is refused."""
    try:
        return runtime.Session(make()).extend(tiny.tokens(1, 40)[0])
    except ValueError as error:
        assert str(error)
        return None


def near(found, wanted):
    return wanted is not None and bool((found - wanted).norm() < NEAR * wanted.norm())


@pytest.mark.parametrize("family, key, place", CASES)
def test_a_key_of_config_json_is_computed_or_refused(family, key, place, folders, tmp_path):
    value, folder = OTHER[key][place], tmp_path / "model"
    folder.mkdir()
    for path in folders[family].iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    config = json.loads((folders[family] / "config.json").read_text())
    if key in ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"):
        config.pop("rope_parameters")
    if key in ("use_sliding_window", "max_window_layers", "sliding_window", "sliding_window_pattern"):
        config.pop("layer_types", None)
    if "use_sliding_window" in config:
        config |= {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    found = answer(lambda: runtime.load(folder, embedding_bits=None))
    known = key in FAMILIES[family].defaults or key in ("rope_theta", "eos_token_id", "dtype")
    assert found is not None or not known or (key, place) not in COMPUTED, f"{key}={value!r} is refused"
    if found is not None:
        assert near(found, logits(models.load(folder, dtype=torch.float32)[0])), f"{key}={value!r}"


@pytest.mark.parametrize("family, key, place", CASES)
def test_a_key_changed_in_memory_is_computed_or_refused(family, key, place):
    model, value = copy.deepcopy(original(family)), OTHER[key][place]
    try:
        setattr(model.config, key, value)
    except Exception:  # transformers itself refuses it, with errors of several kinds
        return
    try:
        wanted = logits(model)
    except Exception:
        wanted = None
    found = answer(lambda: runtime.pack_(model, embedding_bits=None))
    assert found is None or near(found, wanted), f"{key}={value!r}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_class_is_tried_and_its_default_is_ours(family):
    made = configuration(family)
    assert MAKE[family]().config.model_type == family
    assert type(MAKE[family]()).__name__ == FAMILIES[family].model
    fields = {field.name: field.default for field in dataclasses.fields(made) if not field.name.startswith("_")}
    assert not fields.keys() - OTHER.keys()
    for key, default in FAMILIES[family].defaults.items():
        if key in fields:
            assert fields[key] == default, key
        else:
            # what the class takes without listing it
            assert (key, default) in {("head_dim", None), ("sliding_window_pattern", 6), ("rope_local_base_freq", 1e4)}


@pytest.mark.parametrize(
    "family, key",
    [
        (family, key)
        for family in FAMILIES
        for key in [*FAMILIES[family].defaults, "rope_parameters", "eos_token_id"]
        if key in OWN or not family.startswith("thimble")
    ],
)
def test_an_absent_key_is_what_transformers_takes(family, key, folders, tmp_path):
    config = json.loads((folders[family] / "config.json").read_text())
    config.pop(key, None)
    for path in folders[family].iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = answer(lambda: runtime.load(tmp_path, embedding_bits=None))
    try:
        wanted = logits(models.load(tmp_path, dtype=torch.float32)[0])
    except Exception:  # transformers refuses with errors of several kinds
        wanted = None
    assert (found is None) == (wanted is None) and (found is None or near(found, wanted))
