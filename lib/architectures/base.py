"""A Llama whose blocks can be changed in one place: what every architecture of this package starts from.

The parts are transformers' own (`LlamaForCausalLM`): RMS norms before attention and MLP, rotary positions, grouped
queries, SwiGLU, a key/value cache, tied or untied heads. `Attention` computes what `LlamaAttention` does, bit for bit,
and names the three places at which a variant differs: `queries`, `attend` and `after`.
"""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, initialization
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, eager_attention_forward

Draw = Callable[[nn.Parameter, float], object]  # fills a parameter with normal draws of so large a deviation
ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Config(LlamaConfig):
    """Llama's configuration; invalid values raise ValueError as soon as they are set."""

    def __post_init__(self, **more):
        super().__post_init__(**more)
        check(self)


class Attention(LlamaAttention):
    """Attention of queries Q, keys K and values V, each [batch, heads, length, head size], as Llama has it:

    softmax(Q Kᵀ / √(head size)) V, head by head, concatenated, times the output matrix.
    """

    def queries(self, hidden: Tensor) -> Tensor:
        """Queries [batch, length, heads x head size] of the normed stream `hidden` [batch, length, hidden size]."""
        return self.q_proj(hidden)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more):
        """(What each head read [batch, length, heads, head size], attention weights or None)."""
        name = self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        return attention(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **more)

    def after(self, heads: Tensor, hidden: Tensor) -> Tensor:
        """What is concatenated, of what the `heads` read [batch, length, heads, head size] and the normed stream."""
        return heads

    def start_(self, draw: Draw) -> None:
        """Initialise the weights that Llama does not have, for training from scratch."""

    @classmethod
    def more_products(cls, config: LlamaConfig, context: int) -> int:
        """Multiply-adds of one token in one block beside its linear layers, its scores and its values."""
        return 0

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **more):
        """As `LlamaAttention.forward`, with the three places of this class."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.queries(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        heads, weights = self.attend(query, key, value, attention_mask, **more)
        return self.o_proj(self.after(heads, hidden_states).flatten(-2)), weights


def last_(module: nn.Module, *names: str) -> None:
    """Move the parts `names` of `module` behind the others: parts stand in the order in which they run."""
    for name in names:
        module._modules[name] = module._modules.pop(name)


class Decoder(LlamaForCausalLM):
    """A Llama with another `attention` in every block; a variant that changes more overrides `change_`."""

    config_class = Config
    attention: type[LlamaAttention] = Attention

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        for index, block in enumerate(self.model.layers):
            self.change_(block, index)
        self.post_init()

    def change_(self, block: nn.Module, index: int) -> None:
        """Put the variant's parts into the Llama `block` at place `index`."""
        block.self_attn = self.attention(self.config, index)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights missing in a checkpoint, for transformers; `initial.start_` initialises our models."""
        super()._init_weights(module)
        if hasattr(module, "start_"):
            module.start_(lambda parameter, deviation: initialization.normal_(parameter, std=deviation))


def check(config: LlamaConfig) -> None:
    """Raise ValueError for invalid sizes."""
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}; whole numbers from 1 are allowed; change it.")
    heads, keys, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if config.hidden_size % heads:
        divisors = [count for count in range(1, config.hidden_size + 1) if config.hidden_size % count == 0]
        near = sorted(sorted(divisors, key=lambda count: abs(count - heads))[:4])
        raise ValueError(
            f"num_attention_heads={heads} do not divide hidden_size={config.hidden_size}; choose one of "
            f"{', '.join(map(str, near))}, or another width."
        )
    if keys < 1 or heads % keys:
        shared = ", ".join(str(count) for count in range(1, heads + 1) if heads % count == 0)
        raise ValueError(f"num_key_value_heads={keys} for {heads} heads; a divisor is allowed; choose one of {shared}.")
    if size < 2 or size % 2:
        raise ValueError(
            f"heads of size {size}; rotary positions turn pairs, so even sizes are allowed; choose another "
            "head_dim, or another number of heads."
        )


def activation(name: str, field: str) -> nn.Module:
    """The nonlinearity `name`; ValueError, which names the `field` of the configuration, for others."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{field}={name!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()
