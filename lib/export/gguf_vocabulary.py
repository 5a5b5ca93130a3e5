"""A tokenizer as a GGUF file holds it: tokens, their kinds, and merges (byte-level) or scores (SentencePiece).

A byte-level file names its pre-tokenizer by one word; it is found here by what the tokenizer does to texts on which
all rules differ, as llama.cpp's own converter does it. SentencePiece merges the pair whose token has the highest score,
`tokenizers` the pair that stands first in a list: minus its first place there is therefore a token's score.
"""

import json
from collections.abc import Callable

import gguf

from lib import tokenization
from lib.export import gguf_tokenizer

PROBES = (
    "Hello world! 123", "x2 = 10 + 3.14159, y=20001", "I'm sure they'LL say it's 5'd", "  two\n\n\n spaces \t\n",
    "a\r\n\r\nb",
    "Éva's naïve Ⅷ ½ ² ٣٤٥ 一二三 ﬁ", "नमस्ते दुनिया, क्षेत्र", "def f(n):\n\treturn n ** 2  # 2²/3/\n", "😀😀 ... ?!",
    "camelCaseWords ALLCAPS iPhone15ProMax", " 7", "7 ", "12345678901234567890", "nbsp\u00a0here\u3000wide",
)  # fmt: skip
_UNREACHED = -1e6  # score of tokens that no merge gives
_NAMES = ("bos", "eos", "unk", "pad")


def check(tokenizer, rows: int) -> None:
    """Raise ValueError for a tokenizer that a GGUF file can't hold, or with ids beyond the embedding's `rows`."""
    rules = _rules(tokenizer)
    most = max(tokenizer.get_vocab().values())
    if most >= rows:
        raise ValueError(
            f"the tokenizer has ids up to {most}, the embedding {rows} rows; every id needs a row; give the model's "
            "own tokenizer."
        )
    if not _is_sentencepiece(rules):
        rule(tokenizer)


def rule(tokenizer) -> str:
    """The word of llama.cpp for how a byte-level tokenizer splits text; ValueError if none of the known does it."""
    own, model = _splitter(tokenizer.backend_tokenizer.pre_tokenizer), _rules(tokenizer)["model"]
    texts = (
        [tokenizer.backend_tokenizer.normalizer.normalize_str(text) for text in PROBES]
        if _changed(tokenizer)
        else PROBES
    )
    if list(texts) == list(PROBES):
        for names in gguf_tokenizer.RULES.values():
            fitting = [
                name for name in names if (name in gguf_tokenizer.WHOLE_WORDS) == bool(model.get("ignore_merges"))
            ]
            theirs = _splitter(gguf_tokenizer.pre_tokenizer(names[0]))
            if fitting and all(own(text) == theirs(text) for text in PROBES):
                return fitting[0]
    raise ValueError(
        "the tokenizer splits text by a rule without a name in llama.cpp; those of "
        f"{', '.join(names[0] for names in gguf_tokenizer.RULES.values())} are known; write the model with "
        "export.compressed_tensors.save."
    )


def write(writer: gguf.GGUFWriter, tokenizer, rows: int, generation=None) -> None:
    """Add the tokenizer and its chat template to `writer`; ids without a token, up to `rows`, get one that none uses.

    generation: a generation config; an end token of its own besides the tokenizer's is written as the end of a turn.
    """
    rules = _rules(tokenizer)
    sentencepiece = _is_sentencepiece(rules)
    tokens, kinds = _tokens(tokenizer, rules, rows)
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if sentencepiece else rule(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in rules["model"]["merges"]]
    if sentencepiece:
        writer.add_token_scores(_scores(tokens, rules["model"]["merges"]))
        writer.add_add_space_prefix(_has_prefix(rules))
    else:
        writer.add_token_merges(merges)
    for name in _NAMES:
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    begins = tokenization.first_ids(tokenizer)
    writer.add_add_bos_token(bool(begins) and begins[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(False)
    ends = getattr(generation, "eos_token_id", None)
    others = [end for end in (ends if isinstance(ends, list) else [ends]) if end not in (None, tokenizer.eos_token_id)]
    if others:
        writer.add_eot_token_id(others[-1])
    _write_template(writer, tokenizer.chat_template)


def _write_template(writer, template) -> None:
    if isinstance(template, dict):
        writer.add_chat_template([{"name": name, "template": text} for name, text in template.items()])
    elif template:
        writer.add_chat_template(template)


def _rules(tokenizer) -> dict:
    """The parsed tokenizer.json; ValueError for kinds that a GGUF file has no form for."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(core.to_str()) if core is not None else {"model": {"type": type(tokenizer).__name__}}
    model = rules["model"]
    if model.get("type") != "BPE" or not model.get("merges"):
        found = "BPE without merges" if model.get("type") == "BPE" else model.get("type")
        raise ValueError(
            f"the tokenizer is {found}; GGUF files are written of byte-pair tokenizers with merges; "
            "write the model with export.compressed_tensors.save."
        )
    return rules


def _is_sentencepiece(rules: dict) -> bool:
    return bool(rules["model"].get("byte_fallback"))


def _has_prefix(rules: dict) -> bool:
    """Whether a space is put before a text."""
    shown = json.dumps([rules.get("normalizer"), rules.get("pre_tokenizer")])
    return '"Prepend"' in shown or '"prepend_scheme": "first"' in shown or '"prepend_scheme": "always"' in shown


def _tokens(tokenizer, rules: dict, rows: int) -> tuple[list[str], list[int]]:
    """Texts and kinds of all ids, in their order."""
    texts = [f"[PAD{number}]" for number in range(rows)]
    kinds = [gguf.TokenType.UNUSED] * rows
    for text, number in tokenizer.get_vocab().items():
        is_byte = _is_sentencepiece(rules) and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        texts[number], kinds[number] = text, gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL
    for added in rules["added_tokens"]:
        special = added["special"] or added["id"] in tokenizer.all_special_ids
        kinds[added["id"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        if _is_sentencepiece(rules) and not special:
            texts[added["id"]] = added["content"].replace("▁", " ")
    if tokenizer.unk_token_id is not None and _is_sentencepiece(rules):
        kinds[tokenizer.unk_token_id] = gguf.TokenType.UNKNOWN
    return texts, [int(kind) for kind in kinds]


def _scores(tokens: list[str], merges: list) -> list[float]:
    """Minus the first place in `merges` of a pair that gives the token."""
    places = {}
    for place, pair in enumerate(merges):
        places.setdefault("".join(pair.split(" ", 1) if isinstance(pair, str) else pair), place)
    return [-float(places[token]) if token in places else _UNREACHED for token in tokens]


def _changed(tokenizer) -> bool:
    return tokenizer.backend_tokenizer.normalizer is not None


def _splitter(pre_tokenizer) -> Callable[[str], list]:
    return lambda text: [text[begin:end] for _, (begin, end) in pre_tokenizer.pre_tokenize_str(text)]
