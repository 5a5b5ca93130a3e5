"""Sigmoid gates after attention (Qiu et al., "Gated Attention for Large Language Models", arXiv 2505.06708).

    Y' = Y ⊙ σ(X W),

for what the heads have read, Y, before the output matrix, and the normed stream X that queries are made of (position
G1 of section 2.2). "head": one number for each head, W is hidden size by heads. "element": one for each element.
"""

import math

from torch import Tensor, nn

from lib.architectures.base import Attention, Config, Decoder, Draw, last_

GATES = ("head", "element")


class GatedConfig(Config):
    """attention_gate: one of `GATES`."""

    model_type = "thimble_gated"
    attention_gate: str = "head"

    def __post_init__(self, **more):
        super().__post_init__(**more)
        if self.attention_gate not in GATES:
            raise ValueError(f"attention_gate={self.attention_gate!r} is unknown; choose one of {', '.join(GATES)}.")


class GatedAttention(Attention):
    """Attention with a gate on each head, or on each of its elements, computed from the token itself."""

    def __init__(self, config: GatedConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width = 1 if config.attention_gate == "head" else self.head_dim
        self.attention_gate = nn.Linear(config.hidden_size, config.num_attention_heads * width, bias=False)
        last_(self, "o_proj")

    def after(self, heads: Tensor, hidden: Tensor) -> Tensor:
        gate = self.attention_gate(hidden).sigmoid()
        return heads * gate.unflatten(-1, (heads.shape[-2], -1))

    def start_(self, draw: Draw) -> None:
        """As every matrix that reads the stream (`initial.deviation`); gates begin around one half."""
        draw(self.attention_gate.weight, math.sqrt(2 / (5 * self.config.hidden_size)))


class GatedForCausalLM(Decoder):
    """Llama with `GatedAttention`."""

    config_class = GatedConfig
    attention = GatedAttention


MODEL = GatedForCausalLM
