"""Nonlinear queries (Karbevski, "Beyond Linearity in Attention Projections", arXiv 2603.13381).

    Q(X) = (X + f(X)) / 2,   f(X) = LayerNorm(GELU(RMSNorm(X) W₁) W₂),

with W₁ [hidden size, hidden size / 2] and W₂ [hidden size / 2, hidden size] in the place of the query matrix: as many
weights, and two norms. X is the normed stream. The equation is that of the paper's repository, without biases; its
code leaves the half to the scale of the attention.
"""

import math

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lib.architectures.base import Attention, Config, Decoder, Draw, activation, last_


class NonlinearQueryConfig(Config):
    """query_activation: the nonlinearity of the queries, one of `base.ACTIVATIONS`."""

    model_type = "thimble_nonlinear_query"
    query_activation: str = "gelu"

    def __post_init__(self, **more):
        super().__post_init__(**more)
        activation(self.query_activation, "query_activation")
        width = self.num_attention_heads * self.head_dim
        if width != self.hidden_size:
            raise ValueError(
                f"{self.num_attention_heads} heads of size {self.head_dim} make queries of {width} numbers; X itself "
                f"is a part of them, so hidden_size={self.hidden_size} is allowed; leave head_dim out."
            )


class NonlinearQueryAttention(Attention):
    """Attention whose queries are the stream itself and a small MLP of it."""

    def __init__(self, config: NonlinearQueryConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width, inner = config.hidden_size, config.hidden_size // 2
        del self.q_proj
        self.query_norm = LlamaRMSNorm(width, config.rms_norm_eps)
        self.query_in = nn.Linear(width, inner, bias=False)
        self.query_act = activation(config.query_activation, "query_activation")
        self.query_out = nn.Linear(inner, width, bias=False)
        self.query_out_norm = nn.LayerNorm(width, bias=False)
        last_(self, "k_proj", "v_proj", "o_proj")

    def queries(self, hidden: Tensor) -> Tensor:
        bent = self.query_out(self.query_act(self.query_in(self.query_norm(hidden))))
        return (hidden + self.query_out_norm(bent)) / 2

    def start_(self, draw: Draw) -> None:
        """As every matrix that reads the stream (`initial.deviation`); a norm follows, which sets the size."""
        for layer in (self.query_in, self.query_out):
            draw(layer.weight, math.sqrt(2 / (5 * self.config.hidden_size)))


class NonlinearQueryForCausalLM(Decoder):
    """Llama with `NonlinearQueryAttention`."""

    config_class = NonlinearQueryConfig
    attention = NonlinearQueryAttention


MODEL = NonlinearQueryForCausalLM
