"""Peak memory of fine-tuning by way, batch and length, for a model that need not be there: `metrics.footprint` by way.

memory.predict(AutoConfig.from_pretrained(folder), "qlora", bits=4, batch=4, length=512).total
"""

import contextlib
import copy
from collections.abc import Iterator

import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from lib import architectures, files
from lib.metrics import footprint
from lib.models import blocks
from lib.models.eval_mode import evaluating
from lib.quantized.grid import Quantized, check
from lib.quantized.linear import QuantLinear, sparing
from lib.quantizers import activations, e2e_qp
from lib.quantizers.learnable_scale import LearnableScaleLinear
from lib.trainers import adapters, low_rank

WAYS = ("full", "head", "lora", "rslora", "dora", "qlora", "scales")
QUANTIZED = ("qlora", "scales")


def predict(
    config: PretrainedConfig,
    way: str,
    *,
    batch: int,
    length: int,
    dtype: torch.dtype = torch.bfloat16,
    bits: int | None = None,
    group_size: int = 64,
    rank: int = low_rank.RANK,
    recompute: bool = False,
    passes: int = 1,
) -> footprint.Footprint:
    """Bytes at the peak of fine-tuning a model of `config` by `way`; nothing of it is loaded.

    batch: rows of `length` tokens in a forward pass, of which a step has `passes`. bits: of a quantized model, which
    "qlora" and "scales" need. recompute: blocks run again in the backward pass. Raises ValueError for unknown ways and
    for numbers out of range.
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r} to fine-tune is unknown; {files.choices(str(way), WAYS)}")
    if (way in QUANTIZED) and bits is None:
        raise ValueError(f"way={way!r} trains a quantized model; bits of 2 to 8 are needed; give bits=4.")

    def build(depth: int) -> nn.Module:
        model = shallow(config, depth, dtype)
        if bits is not None:
            _quantize_(model, bits, group_size)
        return model

    def prepare(model: nn.Module):
        return _prepared(model, way, rank, recompute)

    count = config.get_text_config().num_hidden_layers
    depths = (adapters.LAST, adapters.LAST + 1) if way == "head" else footprint.DEPTHS
    sizes = {"batch": batch, "length": length, "passes": passes, "depths": depths}
    return footprint.predict(build, prepare, count, **sizes)


def shallow(config: PretrainedConfig, depth: int, dtype: torch.dtype) -> nn.Module:
    """A new model of `config` with `depth` blocks."""
    architectures.make_known()
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _quantize_(model: nn.Module, bits: int, group_size: int) -> None:
    for block in blocks.blocks(model):
        for name, layer in blocks.linears(block).items():
            rows, columns = layer.weight.shape
            size = check(columns, bits=bits, group_size=group_size, name=name)
            shape = (rows, columns // size)
            scale, zero = torch.empty(shape, dtype=torch.bfloat16), torch.empty(shape, dtype=torch.uint8)
            codes = torch.empty(rows, columns, dtype=torch.uint8)
            block.set_submodule(name, QuantLinear(Quantized(codes, scale, zero, bits, size), layer.bias))


@contextlib.contextmanager
def _prepared(model: nn.Module, way: str, rank: int, recompute: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if way == "full":
            stack.enter_context(adapters.full_(model, embeddings=True))
        elif way == "head":
            stack.enter_context(adapters.head_and_last_(model, last=adapters.LAST))
        elif way == "scales":
            layers = e2e_qp.quantized_layers(model)
            parts = {name: LearnableScaleLinear(layer, model.dtype) for name, layer in layers.items()}
            stack.enter_context(e2e_qp.trained_alone(model, parts, False))
        else:
            kind = "lora" if way == "qlora" else way
            stack.enter_context(low_rank.wrapped_(model, kind=kind, rank=rank, alpha=2 * rank, first=0, seed=0))
            stack.enter_context(sparing(model))
        stack.enter_context(evaluating(model))
        if recompute:
            stack.enter_context(activations.recomputed(model))
        yield


_SHAPES = {  # hidden size, width of the MLP, blocks, heads, key and value heads, vocabulary, tied
    "360M": (960, 2560, 32, 15, 5, 49152, True),
    "1.7B": (2048, 8192, 24, 32, 32, 49152, True),
    "7B": (4096, 11008, 32, 32, 32, 32000, False),
    "13B": (5120, 13824, 40, 40, 40, 32000, False),
    "70B": (8192, 28672, 80, 64, 8, 32000, False),
}  # SmolLM2's and Llama 2's, by their configurations
METHODS = {
    "full": {"way": "full"},
    "full, recomputed": {"way": "full", "recompute": True},
    "lora": {"way": "lora"},
    "dora": {"way": "dora"},
    "qlora, 4 bits": {"way": "qlora", "bits": 4},
    "scales, 4 bits": {"way": "scales", "bits": 4},
}
# GB, README of hiyouga/LLaMA-Factory, February 2024: "Full 16", "LoRA 16", "QLoRA 4" for 7B, 13B and 65B, which it
# gives without batch or length
PUBLISHED = {
    "LLaMA-Factory says: full": {"7B": 160, "13B": 320, "70B": 1200},
    "LLaMA-Factory says: LoRA": {"7B": 16, "13B": 32, "70B": 160},
    "LLaMA-Factory says: QLoRA, 4 bits": {"7B": 6, "13B": 12, "70B": 48},
}


def config_of(name: str) -> PretrainedConfig:
    """A configuration of the size `name`, a key of `_SHAPES`."""
    hidden, wide, count, heads, keys, vocabulary, tied = _SHAPES[name]
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=count, num_attention_heads=heads,
        num_key_value_heads=keys, vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip


def table(config: PretrainedConfig, *, batch: int, length: int, rank: int = low_rank.RANK) -> pd.DataFrame:
    """GB at the peak of each of `METHODS`, in bfloat16, for `config` and models of up to 70 billion weights.

    The codes of a quantized layer take a byte each while they are trained on. Below stands what LLaMA-Factory says.
    """
    configs = {"this model": config, **{name: config_of(name) for name in _SHAPES}}
    found = {
        method: {
            name: predict(each, batch=batch, length=length, rank=rank, **_fitting(each, options)).total / 1e9
            for name, each in configs.items()
        }
        for method, options in METHODS.items()
    }
    return pd.DataFrame({**found, **PUBLISHED}).T[list(configs)]


def _fitting(config: PretrainedConfig, options: dict) -> dict:
    """Groups of a row for a model whose widths no usual group divides."""
    text = config.get_text_config()
    whole = text.hidden_size % 64 or text.intermediate_size % 64
    return options | ({"group_size": -1} if whole else {})
