"""Tiny random language models and a tokenizer for tests: built from configs in milliseconds, no network.

Every model has hidden size 64, 4 blocks, 4 heads of 16 (2 key/value heads where the family has them), a
vocabulary of 256 (one token per byte) and sharper weights than the default, so that logits differ between tokens.
"""

import torch

_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def llama(*, seed: int = 0, **overrides):
    """A random `LlamaForCausalLM` in eval mode; `overrides` go to its config (`tie_word_embeddings=False`, ...)."""
    return _build("Llama", seed, overrides)


def qwen2(*, seed: int = 0, **overrides):
    """A random `Qwen2ForCausalLM` (biases on the query, key and value projections)."""
    return _build("Qwen2", seed, overrides)


def qwen3(*, seed: int = 0, **overrides):
    """A random `Qwen3ForCausalLM` (norms on queries and keys)."""
    return _build("Qwen3", seed, {"head_dim": 16, **overrides})


def mistral(*, seed: int = 0, **overrides):
    """A random `MistralForCausalLM` (sliding-window attention where `sliding_window` is given)."""
    return _build("Mistral", seed, {"head_dim": 16, **overrides})


def phi(*, seed: int = 0, **overrides):
    """A random `PhiForCausalLM` (biases everywhere, LayerNorm, attention and MLP in parallel)."""
    return _build("Phi", seed, {"tie_word_embeddings": False, **overrides})


def gemma2(*, seed: int = 0, **overrides):
    """A random `Gemma2ForCausalLM` (four norms a block, soft-capped logits, alternating attention)."""
    return _build("Gemma2", seed, {"head_dim": 16, "query_pre_attn_scalar": 16, **overrides})


def phi3(*, seed: int = 0, **overrides):
    """A random `Phi3ForCausalLM` (queries, keys and values in one layer, gate and up in another)."""
    return _build("Phi3", seed, overrides)


def gemma3(*, seed: int = 0, **overrides):
    """A random `Gemma3ForCausalLM`: four norms a block, windows in every other block, two rotary embeddings."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    given = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12, "layer_types": kinds, **overrides}
    return _build("Gemma3", seed, given, "Gemma3TextConfig")


def architecture(name: str, *, seed: int = 0, **overrides):
    """A model of our own `architectures`, as training begins with it but with sharper weights and norms that differ."""
    from lib import architectures

    sizes = {key: value for key, value in _SIZES.items() if key != "initializer_range"}
    model, draws = architectures.build(name, {**sizes, **overrides}, seed), torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in model.parameters():  # norms that are no ones, mixtures that are no identities
            weight.add_(0.2 * torch.randn(weight.shape, generator=draws) * weight.std(None))
            weight.mul_(1.5) if weight.ndim > 1 else weight.add_(0.1 * torch.rand(weight.shape, generator=draws))
    model.tokenizer = tokenizer()
    return model


def tokenizer():
    """A byte-level `PreTrainedTokenizerFast`: token id = byte value, 256 tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(_symbols())}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    zero = _symbols()[0]
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=zero, eos_token=zero, pad_token=zero)
    made.chat_template = _TEMPLATE
    return made


def tokens(count: int = 4, length: int = 32, *, vocab: int = 256, seed: int = 0) -> torch.Tensor:
    """Random token ids, LongTensor [count, length]."""
    return torch.randint(vocab, (count, length), generator=torch.Generator().manual_seed(seed))


def save(folder, model=None):
    """Write a complete checkpoint folder (default: a tiny Llama, with the tokenizer); returns `folder`."""
    (model or llama()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _build(family, seed, overrides, config=None):
    import transformers

    kind = getattr(transformers, f"{family}ForCausalLM")
    config = (getattr(transformers, config) if config else kind.config_class)(**{**_SIZES, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():  # norms and biases start at ones and zeros, which would hide errors in them
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.tokenizer = tokenizer()
    return model.eval()


def _symbols():
    """The 256 printable characters that byte-level tokenizers write for the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]
