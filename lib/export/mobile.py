"""What fits on a phone: the peak of weights, cache, activations and runtime beside what the system lets an app have.

    plan = mobile.plan(model, "android-8gb", prompt=512, answer=256)
    print(plan)            # what it takes, what is allowed, and what would make it fit

A system ends an app long before the memory is full, and without a message of the app's own: the plan compares with the
share that an app was seen to get, not with the memory on the box. The numbers of phones are those of their sources,
none was measured here. A prediction of the peak is a sum:

    weights       bytes of the file: mapped, and read whole for every token
    cache         keys and values of all blocks for prompt and answer; blocks with windows keep their window
    activations   of `BATCH` prompt tokens that are read at once: the stream, the widest layer's inputs and outputs and
                  attention scores, in float32, and the logits of one token
    runtime       code, tokenizer and buffers, `RUNTIME` bytes

Tokens a second are at most bandwidth over the bytes read for a token (weights and cache).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from lib import files
from lib.export import plain
from lib.models import blocks

BATCH = 512  # prompt tokens that llama.cpp reads at once
RUNTIME = 60 << 20
_GIGA = 10**9


class Phone(NamedTuple):
    """memory: bytes. share: of it, that an app gets. bandwidth: bytes a second, None if unknown. source: of both."""

    memory: float
    share: float
    bandwidth: float | None
    source: str


PHONES = {
    "android-8gb": Phone(
        8 * _GIGA, 0.5, None, "Galaxy S23 with 8 GB: 4 GB were free when Llama 2 7B in 4 bits died (executorch #3599)"
    ),
    "competition-12gb": Phone(
        12 * _GIGA, 0.1, None, "a tenth, as the Edge-Device LLM Competition (NeurIPS 2024) advises"
    ),
    "snapdragon-8-gen-3-12gb": Phone(
        12 * _GIGA, 0.5, 76.8 * _GIGA,
        "LPDDR5X at 4800 MHz (data sheet) on four channels of 16 bits; the share is that of android-8gb",
    ),
    "ipad-8gb": Phone(
        8 * _GIGA, 0.375, None, "iPadOS 26.4: 3 of 8 GB (Apple's developer forum, thread 826325); 6 of 8 GB before"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A prediction in bytes; `fits` compares `peak` with `allowed`, `remedies` are sentences for what does not fit.

    tokens_a_second: an upper bound, None where the phone's bandwidth is not known.
    """

    phone: str
    weights: int
    cache: int
    activations: int
    runtime: int
    allowed: int
    tokens_a_second: float | None
    remedies: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of all parts together."""
        return self.weights + self.cache + self.activations + self.runtime

    @property
    def fits(self) -> bool:
        """Whether the peak is within what the system lets an app have."""
        return self.peak <= self.allowed

    def __str__(self) -> str:
        parts = ", ".join(
            f"{key} {getattr(self, key) / 1e6:,.0f}" for key in ("weights", "cache", "activations", "runtime")
        )
        answer = "fits" if self.fits else "does not fit"
        said = f"{self.phone}: {answer}: {self.peak / 1e6:,.0f} MB ({parts}), {self.allowed / 1e6:,.0f} MB are allowed"
        speed = "" if self.tokens_a_second is None else f"; at most {self.tokens_a_second:.0f} tokens a second"
        return "\n".join([said + speed, *self.remedies])


def plan(model, phone: str | Phone, *, weights: int | None = None, prompt: int = 512, answer: int = 256) -> Plan:
    """What `model` takes on `phone` with texts of `prompt` and `answer` tokens, and what would make it fit.

    model: a model, or its configuration alone where `weights` is given: a model that is too large for this machine can
    be planned too. phone: one of `PHONES`, or a `Phone`. weights: bytes of the file (`metrics.count.artifact_bytes`, or
    the size of a GGUF file); by default those of the model's tensors.
    Raises ValueError for unknown phones, lengths below one, and a configuration without `weights`.
    """
    named = phone if isinstance(phone, str) else "the given phone"
    if isinstance(phone, str) and phone not in PHONES:
        raise ValueError(f"there is no phone {phone!r}; {files.choices(phone, PHONES)}")
    for name, value in (("prompt", prompt), ("answer", answer)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}; whole numbers of tokens from 1 are allowed; 512 and 256 are usual.")
    if weights is None and not isinstance(model, nn.Module):
        raise ValueError("a configuration has no weights to count; give weights=, the bytes of the file.")
    described = PHONES[phone] if isinstance(phone, str) else phone
    config = blocks.config(model) if isinstance(model, nn.Module) else model.get_text_config()
    weights = held(model) if weights is None else weights
    cache = cache_bytes(config, prompt + answer)
    working = activation_bytes(config, min(BATCH, prompt), prompt + answer)
    allowed = int(described.memory * described.share)
    speed = None if described.bandwidth is None else described.bandwidth / (weights + cache)
    over = weights + cache + working + RUNTIME - allowed
    remedies = _remedies(config, weights, over, prompt + answer, described) if over > 0 else ()
    return Plan(named, weights, cache, working, RUNTIME, allowed, speed, remedies)


def held(model: nn.Module) -> int:
    """Bytes of the tensors of `model`, packed as a checkpoint packs them; tied ones once."""
    return plain.size(model)


def cache_bytes(config, tokens: int, *, element: int = 2) -> int:
    """Bytes of keys and values for `tokens`, with `element` bytes a number: half precision."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or tokens
    lengths = (min(window, tokens) if kind == "sliding_attention" else tokens for kind in kinds)
    return sum(lengths) * 2 * heads * size * element


def activation_bytes(config, batch: int, tokens: int) -> int:
    """Bytes in float32 while a block reads `batch` tokens of a text of `tokens`, and of the logits of one token."""
    wide = max(config.hidden_size, config.intermediate_size)
    return 4 * (batch * (2 * config.hidden_size + 2 * wide + config.num_attention_heads * tokens) + config.vocab_size)


def _remedies(config, weights: int, over: int, tokens: int, phone: Phone) -> tuple[str, ...]:
    """What would save `over` bytes: fewer blocks, fewer bits, a shorter text."""
    tables = 1 if config.tie_word_embeddings else 2
    share = 1 - tables * config.vocab_size * config.hidden_size / _count(config)
    a_block = (weights * share + cache_bytes(config, tokens)) / config.num_hidden_layers
    found, dropped = [], -(-over // max(1, int(a_block)))
    if dropped < config.num_hidden_layers:
        found.append(f"without {dropped} of {config.num_hidden_layers} blocks it would fit")
    bits = 8 * weights / _count(config)
    fewer = bits * (weights - over) / weights
    if fewer >= 2:
        found.append(f"with {fewer:.1f} bits a weight instead of {bits:.1f} it would fit")
    if over < cache_bytes(config, tokens):
        a_token = cache_bytes(config, tokens) / tokens
        found.append(f"with texts of {int(tokens - over / a_token) - 1} instead of {tokens} tokens it would fit")
    return tuple(found) or (f"nothing fits into {phone.memory * phone.share / 1e6:,.0f} MB but a smaller model",)


def _count(config) -> int:
    """Weights of a decoder with gated MLPs."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * size * 2 * (config.num_attention_heads + heads)
    block = attention + 3 * config.hidden_size * config.intermediate_size
    tables = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * block + tables * config.vocab_size * config.hidden_size
