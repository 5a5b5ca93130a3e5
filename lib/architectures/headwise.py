"""Headwise: a matrix and a nonlinearity for each head, before the heads are concatenated.

    yₕ = φ(Wₕ xₕ), or xₕ + φ(Wₕ xₕ) with the residual,

for what head h has read, xₕ, and Wₕ of head size by head size. Without φ (identity) nothing is gained over Llama: Wₕ
folds into the output matrix (`controls.fold`), so that this control isolates the nonlinearity.
"""

import math

from torch import Tensor

from lib.architectures.base import Attention, Config, Decoder, Draw, activation, last_
from lib.architectures.per_head import PerHead

# 1 / slope at zero (for ReLU the root of 2: He et al., arXiv 1502.01852, equation 10): what is small keeps its size
GAINS = {"identity": 1.0, "relu": math.sqrt(2), "gelu": 2.0, "silu": 2.0}


class HeadwiseConfig(Config):
    """head_activation: φ, one of `base.ACTIVATIONS`. head_residual: whether xₕ is added."""

    model_type = "thimble_headwise"
    head_activation: str = "gelu"
    head_residual: bool = False

    def __post_init__(self, **more):
        super().__post_init__(**more)
        activation(self.head_activation, "head_activation")


class HeadwiseAttention(Attention):
    """Attention with a linear layer and a nonlinearity on each head before concatenation."""

    def __init__(self, config: HeadwiseConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.head_proj = PerHead(config.num_attention_heads, self.head_dim)
        self.head_act = activation(config.head_activation, "head_activation")
        last_(self, "o_proj")

    def after(self, heads: Tensor, hidden: Tensor) -> Tensor:
        found = self.head_act(self.head_proj(heads))
        return heads + found if self.config.head_residual else found

    def start_(self, draw: Draw) -> None:
        """Deviation gain / √(head size); with the residual as small as a block's addition to the stream (GPT-2)."""
        deviation = GAINS[self.config.head_activation] / math.sqrt(self.head_dim)
        if self.config.head_residual:
            deviation /= math.sqrt(2 * self.config.num_hidden_layers)
        for layer in self.head_proj:
            draw(layer.weight, deviation)


class HeadwiseForCausalLM(Decoder):
    """Llama with `HeadwiseAttention`."""

    config_class = HeadwiseConfig
    attention = HeadwiseAttention


MODEL = HeadwiseForCausalLM
