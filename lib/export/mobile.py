"""What fits on a phone: the peak of weights, cache, activations and runtime beside what the system lets an app have.

    plan = mobile.plan(model, "android-8gb", prompt=512, answer=256)
    print(plan)            # what it takes, what is allowed, and what would make it fit

A system ends an app long before the memory is full, and without a message of the app's own: the plan compares with the
share that an app was seen to get (`phones`), not with the memory on the box. A prediction of the peak is a sum:

    weights       bytes of the file, which is read whole for every token
    cache         keys and values of all blocks for prompt and answer; blocks with windows keep their window
    activations   of `batch` prompt tokens that are read at once, in float32: twice the stream, and their logits or the
                  insides of an MLP, whichever are more; attention keeps no scores
    runtime       code and buffers, `RUNTIME` bytes, and the tokenizer, `ENTRY` bytes for each entry of the vocabulary

Tokens a second are at most bandwidth over the bytes read for a token (weights and cache). Energy is 0.1 J a token for
10⁹ weights (Liu et al., "MobileLLM", arXiv 2402.14905, section 1), for each pass over the weights: one a token of the
answer, and one for each batch of the prompt. `mobile_check` compares the peak with a real runtime under a hard limit.
"""

import math
from dataclasses import dataclass

from torch import nn

from lib import files
from lib.export import plain
from lib.export.phones import PHONES, Phone
from lib.models import blocks

__all__ = ["PHONES", "Phone", "Plan", "activation_bytes", "cache_bytes", "held", "plan"]

BATCH = 512  # prompt tokens that llama.cpp reads at once
RUNTIME = 60 << 20
ENTRY = 520  # bytes of a token in llama.cpp's tokenizer with its merges (SmolLM2's, as its process grows by them)
JOULES = 0.1e-9  # a pass over one weight
BATTERY = 50_000  # joules of a full iPhone (arXiv 2402.14905)


@dataclass(frozen=True)
class Plan:
    """A prediction in bytes; `fits` compares `peak` with `allowed`, `remedies` are sentences for what does not fit.

    tokens_a_second: an upper bound, None where the phone's bandwidth is not known. joules: of one answer, an estimate.
    """

    phone: str
    weights: int
    cache: int
    activations: int
    runtime: int
    allowed: int
    tokens_a_second: float | None
    joules: float
    remedies: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of all parts together."""
        return self.weights + self.cache + self.activations + self.runtime

    @property
    def fits(self) -> bool:
        """Whether the peak is within what the system lets an app have."""
        return self.peak <= self.allowed

    def reason(self) -> str:
        """Which part, after the larger ones, goes beyond what is allowed; an empty text where all fit."""
        total = 0
        for name, size in sorted(self.parts().items(), key=lambda part: -part[1]):
            total += size
            if total > self.allowed:
                return f"{name} ({size / 1e6:,.0f} MB) is what goes beyond: {total / 1e6:,.0f} MB with all larger parts"
        return ""

    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return {key: getattr(self, key) for key in ("weights", "cache", "activations", "runtime")}

    def __str__(self) -> str:
        parts = ", ".join(f"{key} {size / 1e6:,.0f}" for key, size in self.parts().items())
        answer = "fits" if self.fits else "does not fit"
        said = f"{self.phone}: {answer}: {self.peak / 1e6:,.0f} MB ({parts}), {self.allowed / 1e6:,.0f} MB are allowed"
        if self.tokens_a_second is not None:
            said += f"; at most {self.tokens_a_second:.0f} tokens a second"
        said += f"; about {self.joules:.0f} J an answer, {self.joules / BATTERY:.1%} of a battery"
        return "\n".join([said, *filter(None, [self.reason()]), *self.remedies])


def plan(
    model,
    phone: str | Phone,
    *,
    weights: int | None = None,
    prompt: int = 512,
    answer: int = 256,
    batch: int = BATCH,
) -> Plan:
    """What `model` takes on `phone` with texts of `prompt` and `answer` tokens, and what would make it fit.

    model: a model, or its configuration alone where `weights` is given: a model that is too large for this machine can
    be planned too. phone: one of `PHONES`, or a `Phone`. weights: bytes of the file (`metrics.count.artifact_bytes`, or
    the size of a GGUF file); by default those of the model's tensors. batch: tokens of the prompt that are read at
    once. Raises ValueError for unknown phones, lengths below one, and a configuration without `weights`.
    """
    named = phone if isinstance(phone, str) else "the given phone"
    if isinstance(phone, str) and phone not in PHONES:
        raise ValueError(f"there is no phone {phone!r}; {files.choices(phone, PHONES)}")
    for name, value in (("prompt", prompt), ("answer", answer), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}; whole numbers of tokens from 1 are allowed; 512 is usual.")
    if weights is None and not isinstance(model, nn.Module):
        raise ValueError("a configuration has no weights to count; give weights=, the bytes of the file.")
    described = PHONES[phone] if isinstance(phone, str) else phone
    config = blocks.config(model) if isinstance(model, nn.Module) else model.get_text_config()
    weights = held(model) if weights is None else weights
    cache = cache_bytes(config, prompt + answer)
    working = activation_bytes(config, min(batch, prompt))
    allowed = int(described.memory * described.share)
    speed = None if described.bandwidth is None else described.bandwidth / (weights + cache)
    runtime = RUNTIME + ENTRY * config.vocab_size
    over = weights + cache + working + runtime - allowed
    remedies = _remedies(config, weights, over, prompt + answer, described, min(batch, prompt)) if over > 0 else ()
    joules = JOULES * _count(config) * (answer + math.ceil(prompt / batch))
    return Plan(named, weights, cache, working, runtime, allowed, speed, joules, remedies)


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


def activation_bytes(config, batch: int) -> int:
    """Bytes in float32 while `batch` tokens are read: llama.cpp makes room for the logits of all of them."""
    stream = 2 * config.hidden_size
    return 4 * batch * (stream + max(config.vocab_size, 2 * config.intermediate_size))


def _remedies(config, weights: int, over: int, tokens: int, phone: Phone, batch: int) -> tuple[str, ...]:
    """What would save `over` bytes: fewer blocks, fewer bits, a shorter text, fewer tokens at once."""
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
    each = activation_bytes(config, 1)
    if batch - over // each - 1 >= 1:
        found.append(f"reading {batch - over // each - 1} instead of {batch} tokens at once it would fit")
    return tuple(found) or (f"nothing fits into {phone.memory * phone.share / 1e6:,.0f} MB but a smaller model",)


def _count(config) -> int:
    """Weights of a decoder with gated MLPs."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * size * 2 * (config.num_attention_heads + heads)
    block = attention + 3 * config.hidden_size * config.intermediate_size
    tables = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * block + tables * config.vocab_size * config.hidden_size
