"""Controls: plain Llamas that have what a variant has, but not its idea.

`fold` puts the matrices of a headwise model without nonlinearity into its output matrices; `equal_weights` and
`equal_flops` put a variant's additional weights, or operations, into a wider MLP; `deeper` adds blocks.
"""

import copy
import math

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, initialization

from lib.models import blocks

TOLD = ("model_type", "architectures", "transformers_version")  # what a configuration says of itself, and no size


def sizes(config: LlamaConfig) -> dict:
    """The values of `config`, whatever variant it is of, that Llama has too."""
    shared = LlamaConfig().to_dict().keys() - set(TOLD)
    return {name: value for name, value in config.to_dict().items() if name in shared}


def plain_config(config: LlamaConfig, **changes) -> LlamaConfig:
    """Llama's configuration with the sizes of `config`, and with `changes`."""
    return LlamaConfig(**sizes(config) | changes)


@torch.no_grad()
def fold(model: nn.Module) -> LlamaForCausalLM:
    """The Llama that computes what the headwise `model` without nonlinearity does, with fewer weights.

    The output matrix of head h becomes Oₕ Wₕ, or Oₕ (1 + Wₕ) with the residual; products are taken in float64 and
    rounded once. Raises ValueError for other models, and for nonlinearities, which can't be folded.
    """
    config = blocks.config(model)
    if getattr(config, "head_activation", None) != "identity":
        raise ValueError(
            f"{type(model).__name__} has head_activation={getattr(config, 'head_activation', None)!r}; only headwise "
            "models with 'identity' fold into Llama; build one as 'headwise_identity'."
        )
    if any(blocks.is_quantized(layer) for layer in blocks.linears(model).values()):
        raise ValueError("the model is quantized; codes can't be multiplied; fold it first, then quantize it.")
    kept = {name: tensor for name, tensor in model.state_dict().items() if ".head_proj." not in name}
    for name, block in model.named_modules():
        if not hasattr(block, "head_proj"):
            continue
        matrices = torch.stack([layer.weight for layer in block.head_proj]).double()  # [heads, out, in]
        if config.head_residual:
            matrices += torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        parts = block.o_proj.weight.double().unflatten(-1, matrices.shape[:2])  # [hidden, heads, size]
        folded = torch.einsum("nho,hoi->nhi", parts, matrices).flatten(1)
        kept[f"{name}.o_proj.weight"] = folded.to(block.o_proj.weight.dtype)
    with initialization.no_init_weights():
        made = LlamaForCausalLM(plain_config(config, dtype=model.dtype)).to(model.device, model.dtype)
    made.load_state_dict(kept)
    made.tie_weights()
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.train(model.training)


def equal_weights(kind: type, config: LlamaConfig, *, multiple: int = 1) -> LlamaConfig:
    """The plain configuration whose wider MLP has the weights that `kind`, a class of models, has more at `config`.

    The intermediate size is rounded to a multiple of `multiple` (of the group size, say, where the model will be
    quantized), so the weights differ by at most half of it times 3 x hidden size x blocks.
    """
    more = weights(kind, config) - weights(LlamaForCausalLM, plain_config(config))
    return _wider(config, more / (3 * config.hidden_size * config.num_hidden_layers), multiple)


def equal_flops(kind: type, config: LlamaConfig, *, context: int, multiple: int = 1) -> LlamaConfig:
    """As `equal_weights`, for the operations of a token that attends to `context` positions."""
    more = products(kind, config, context) - products(LlamaForCausalLM, plain_config(config), context)
    return _wider(config, more / (3 * config.hidden_size * config.num_hidden_layers), multiple)


def deeper(config: LlamaConfig, blocks: int = 1) -> LlamaConfig:
    """The plain configuration with so many `blocks` more."""
    return plain_config(config, num_hidden_layers=config.num_hidden_layers + blocks)


def weights(kind: type, config: LlamaConfig) -> int:
    """Weights of a model of class `kind`; no memory is taken for them."""
    return sum(each.numel() for each in shape(kind, config).parameters())


def products(kind: type, config: LlamaConfig, context: int) -> int:
    """Multiply-adds of a token's forward pass that `kind` may have more or fewer of than Llama: those of its linear
    layers and what its attention multiplies beside scores and values, which all have alike.
    """
    model = shape(kind, config)
    found = sum(layer.in_features * layer.out_features for layer in blocks.linears(model).values())
    parts = [part for part in model.modules() if hasattr(part, "more_products")]
    return found + sum(part.more_products(config, context) for part in parts)


def shape(kind: type, config: LlamaConfig) -> nn.Module:
    """A model of class `kind` without memory; of its own settings, where `config` is of another class."""
    own = config if isinstance(config, kind.config_class) else kind.config_class(**sizes(config))
    with torch.device("meta"), initialization.no_init_weights():
        model = kind(own)
    model.tie_weights()  # which is skipped with the initialization
    return model


def _wider(config: LlamaConfig, units: float, multiple: int) -> LlamaConfig:
    if multiple < 1:
        raise ValueError(f"multiple={multiple}; whole numbers from 1 are allowed; 1 comes nearest.")
    size = multiple * math.floor((config.intermediate_size + units) / multiple + 0.5)
    if size < 1:
        raise ValueError(f"an MLP of {size} units is none; choose a multiple below {config.intermediate_size}.")
    return plain_config(config, intermediate_size=size)
