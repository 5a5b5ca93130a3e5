"""Talking heads: the heads' logits and their weights are mixed (Shazeer et al., arXiv 2003.02436, section 4).

    J = Q Kᵀ / √(head size);  W = softmax(Pₗ J);  O = (Pᵥᵥ W) V,

where the matrices Pₗ and Pᵥᵥ [heads, heads] mix the heads for each pair of positions. The paper's key and value heads
may differ in number from these; here all three numbers are that of the query heads. Both begin as the identity, where
the model is Llama. Their cost is not per token but per pair of positions: they are no linear layers, and stay in full
precision when those are quantized.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, initialization
from transformers.models.llama.modeling_llama import repeat_kv

from lib.architectures.base import Attention, Config, Decoder, Draw


class TalkingHeadsConfig(Config):
    """Nothing but Llama's sizes."""

    model_type = "thimble_talking_heads"


class TalkingHeadsAttention(Attention):
    """Attention with a mixture of heads before and behind its softmax."""

    def __init__(self, config: TalkingHeadsConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        count = config.num_attention_heads
        self.mix_logits, self.mix_weights = (nn.Parameter(torch.eye(count)) for _ in range(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more):
        key, value = (repeat_kv(each, self.num_key_value_groups) for each in (key, value))
        logits = torch.einsum("gh,bhqk->bgqk", self.mix_logits, query @ key.transpose(2, 3) * self.scaling)
        weights = (logits if mask is None else logits + mask).softmax(-1, dtype=torch.float32).to(query.dtype)
        weights = nn.functional.dropout(weights, self.attention_dropout, training=self.training)
        mixed = torch.einsum("gh,bhqk->bgqk", self.mix_weights, weights)
        return (mixed @ value).transpose(1, 2), mixed

    def start_(self, draw: Draw) -> None:
        """Initialise the mixtures as identities: the model starts as a Llama."""
        for each in (self.mix_logits, self.mix_weights):
            initialization.eye_(each)

    @classmethod
    def more_products(cls, config: LlamaConfig, context: int) -> int:
        """Two mixtures of all heads for each position that the token attends to."""
        return 2 * config.num_attention_heads**2 * context


class TalkingHeadsForCausalLM(Decoder):
    """Llama with `TalkingHeadsAttention`, which needs all logits: no fused attention computes it."""

    config_class = TalkingHeadsConfig
    attention = TalkingHeadsAttention
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = False


MODEL = TalkingHeadsForCausalLM
