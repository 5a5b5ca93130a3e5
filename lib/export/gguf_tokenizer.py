"""The tokenizer that a GGUF file describes, with the pre-tokenizer that the file names.

A byte-level vocabulary says by one word, `tokenizer.ggml.pre`, how text is split before pairs of symbols are merged
(SmolLM2's `smollm`: every digit by itself). transformers knows some of these words and takes GPT-2's rule for all
others, which gives other ids. Here each word has the rule that llama.cpp gives it, or is refused.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from lib import files

# rule -> the names of `tokenizer.ggml.pre` that llama.cpp (src/llama-vocab.cpp) splits by it
RULES = {
    "words": (
        "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum",
        "exaone4",
    ),
    "digits, then words": (
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2",
    ),
    "qwen2": (
        "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2",
    ),
    "qwen35": ("qwen35",),
    "llama-bpe": (
        "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe",
        "glm4", "chatglm-bpe",
    ),
    "tekken": ("tekken",),
    "gpt-4o": ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
}  # fmt: skip
# whose vocabulary holds words that their merges do not lead to, and whose texts begin with BOS unless the file says no
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
SENTENCEPIECE = ("gemma", "gemma2", "gemma3")  # architectures whose SentencePiece vocabulary transformers reads right


def load(gguf: Path):
    """The transformers tokenizer of a GGUF file; ValueError where the file names a rule that isn't known here."""
    from transformers import AutoTokenizer  # loads torch, only to convert a packaged model

    kind, name, architecture, count, says_bos = _described(gguf)
    _check(gguf, kind, name, architecture)
    options = {} if says_bos else {"add_bos_token": kind == "llama" or name in WHOLE_WORDS}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)
    if kind == "gpt2":
        core = tokenizer.backend_tokenizer
        core.pre_tokenizer = pre_tokenizer(name)
        core.model.ignore_merges = name in WHOLE_WORDS
    for setting in ("is_local", "local_files_only"):  # loading arguments are not part of the tokenizer
        tokenizer.init_kwargs.pop(setting, None)
    return _within(tokenizer, count)


def pre_tokenizer(name: str):
    """The `tokenizers` pre-tokenizer for a name of `tokenizer.ggml.pre`; ValueError for names without a rule."""
    # loads torch, only to convert a packaged model
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    rule = next((rule for rule, names in RULES.items() if name in names), None)
    if rule is None:
        raise ValueError(f"tokenizer.ggml.pre={name!r}; {files.choices(name, _names())}")
    if rule == "words":
        return ByteLevel(add_prefix_space=False)
    if rule == "digits, then words":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    split = Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[rule]), behavior="isolated")
    return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])


def _within(tokenizer, count: int):
    """The tokenizer without what transformers added past the file's `count` tokens: GPT-2's own `<|endoftext|>`."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in rules["added_tokens"] if token["id"] < count]
    if len(kept) == len(rules["added_tokens"]):
        return tokenizer
    core = Tokenizer.from_str(json.dumps(rules | {"added_tokens": kept}))
    return type(tokenizer)(tokenizer_object=core, **tokenizer.init_kwargs)


def _described(gguf: Path) -> tuple[str, str | None, str, int, bool]:
    """(kind of vocabulary, pre-tokenizer, architecture, number of tokens, whether the file says if BOS is added)."""
    from gguf import GGUFReader  # only to convert a packaged model

    fields = GGUFReader(gguf).fields
    names = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "general.architecture")
    said = [fields[name].contents() if name in fields else None for name in names]
    tokens = fields.get("tokenizer.ggml.tokens")
    return *said, len(tokens.data) if tokens else 0, "tokenizer.ggml.add_bos_token" in fields


def _check(gguf: Path, kind: str, name: str | None, architecture: str) -> None:
    instead = "name the original checkpoint (a folder or a Hub id) instead of this GGUF file."
    if kind == "gpt2" and name not in _names():
        given = "no tokenizer.ggml.pre" if name is None else f"tokenizer.ggml.pre={name!r}"
        allowed = ", ".join(sorted(_names()))
        raise ValueError(f"{gguf.name} has {given}; the rules of {allowed} are known; {instead}")
    if kind == "llama" and architecture not in SENTENCEPIECE:
        raise ValueError(
            f"{gguf.name} has a SentencePiece vocabulary of architecture {architecture!r}; those of "
            f"{', '.join(SENTENCEPIECE)} are read; {instead}"
        )
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"{gguf.name} has tokenizer.ggml.model={kind!r}; 'gpt2' and 'llama' are read; {instead}")


def _names() -> set[str]:
    return {name for names in RULES.values() for name in names}
