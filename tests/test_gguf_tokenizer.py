"""GGUF tokenizers: text is split as llama.cpp splits it, by the rule that the file names, or refused."""

import itertools
import json
import os
from pathlib import Path

import pytest
import regex

from lib.export import gguf_tokenizer
from lib.sources import packaged
from tests import tiny
from tests.test_packaged import real, write_gguf  # noqa: F401

# as llama.cpp writes them (src/llama-vocab.cpp), but for the last: those of the models' own tokenizer.json
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{{0}}|"
MARKED = r"|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "words": [GPT2],
    "digits, then words": [r"\p{N}", GPT2],
    "qwen2": [SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST],
    "qwen35": [SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+" + MARKED],
    "llama-bpe": [SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST],
    "tekken": [CASED.replace("{0}", "") + r"\p{N}" + SLASH],
    "gpt-4o": [CASED.replace("{0}", SHORT + "?") + r"\p{N}{1,3}" + SLASH],
}
TEXTS = [
    "Hello world! 123", "x2 = 10 + 3.14159, y=20001", "I'm sure they'LL say it's 5'd", "  two\n\n\n spaces \t\n", "",
    "a\r\n\r\nb", "Éva's naïve Ⅷ ½ ² ٣٤٥ 一二三 ﬁ", "नमस्ते दुनिया, क्षेत्र",
    "def f(n: int) -> int:\n\treturn n ** 2  # 2²/3/\n",
    "😀😀 ... ?!",
    "camelCaseWords ALLCAPS iPhone15ProMax", " 7", "7 ", "12345678901234567890", "nbsp\u00a0here\u3000wide",
]  # fmt: skip


def split(text, patterns):
    """llama.cpp's way: each pattern parts the pieces that the one before left, matches and gaps alike."""
    pieces = [text] if text else []
    for pattern in patterns:
        parted = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                parted += [piece[end : match.start()], match.group()]
                end = match.end()
            parted.append(piece[end:])
        pieces = [piece for piece in parted if piece]
    return pieces


@pytest.mark.parametrize("name", sorted(gguf_tokenizer._names()))
def test_split_is_that_of_llama_cpp(name):
    rule = next(rule for rule, names in gguf_tokenizer.RULES.items() if name in names)
    made = gguf_tokenizer.pre_tokenizer(name)
    for text in [*TEXTS, *real_texts()]:
        found = [text[begin:end] for _, (begin, end) in made.pre_tokenize_str(text)]
        assert found == split(text, SPLITS[rule]), text


def real_texts():
    folder = Path(os.environ.get("THIMBLE_DATA", "")) / "humaneval" / "HumanEval.jsonl"
    return [json.loads(line)["prompt"] for line in folder.read_text().splitlines()] if folder.is_file() else []


@pytest.mark.parametrize(
    ("pre", "said"),
    [("kimi-k2", r"tiny\.gguf has tokenizer\.ggml\.pre='kimi-k2'; the rules of .*smollm.* are known; name the orig"),
     ("default", "tokenizer.ggml.pre='default'"), (None, "has no tokenizer.ggml.pre; the rules of")],
)  # fmt: skip
def test_unknown_rule_is_refused_by_name(tmp_path, pre, said):
    write_gguf(tmp_path / "tiny.gguf", tiny.llama(), pre=pre)
    with pytest.raises(ValueError, match=said):
        packaged.convert(tmp_path / "tiny.gguf", tmp_path, packaged.MODELS[packaged.NAME])
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "said"), [("llama", "architecture 'llama'; those of gemma"), ("bert", "ggml.model='bert'")]
)
def test_other_vocabularies_are_refused(tmp_path, kind, said):
    write_gguf(tmp_path / "tiny.gguf", tiny.llama(), kind=kind)
    with pytest.raises(ValueError, match=said):
        gguf_tokenizer.load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("pre", "whole", "bos"), [("gpt-2", True, False), ("smollm", False, False), ("llama-bpe", True, True)]
)
def test_converted_tokenizer_does_what_the_file_says(tmp_path, pre, whole, bos):
    """'12' is a merge: only where digits are not parted first does it come about."""
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", tiny.llama(), pre=pre, merge="1 2")
    (tmp_path / "made").mkdir()
    packaged.convert(tmp_path / "tiny.gguf", tmp_path / "made", packaged.MODELS[packaged.NAME])
    for tokenizer in (gguf_tokenizer.load(tmp_path / "tiny.gguf"), AutoTokenizer.from_pretrained(tmp_path / "made")):
        assert len(tokenizer) == 256  # transformers would add GPT-2's end token as one more
        assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0 and tokenizer.chat_template == "{{ messages }}"
        assert tokenizer.tokenize("a12") == (["a", "12"] if whole else ["a", "1", "2"])
        assert (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) == bos
        assert tokenizer.backend_tokenizer.model.ignore_merges == (pre == "llama-bpe")


# ids that llama.cpp gives these texts with this model's file
KNOWN = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "\n": [198],
}


@pytest.mark.long
def test_packaged_tokenizer_is_the_models_own(real):  # noqa: F811
    """Against llama.cpp's ids, and against merging pairs one by one as the file lists them."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    assert {text: tokenizer(text).input_ids for text in KNOWN} == KNOWN
    fields = GGUFReader(packaged.locate()[0]).fields
    vocabulary = {token: place for place, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(fields["tokenizer.ggml.merges"].contents())}
    for text in [*TEXTS, *real_texts()[:40]]:
        expected = [
            vocabulary[token] for piece in split(text, SPLITS["digits, then words"]) for token in merged(piece, ranks)
        ]
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        assert tokenizer.decode(expected, clean_up_tokenization_spaces=False) == text


def merged(piece, ranks):
    """Byte-pair encoding of a piece: the pair that was learned first is merged first."""
    symbols = [tiny._symbols()[byte] for byte in piece.encode()]
    while len(symbols) > 1:
        rank, place = min(
            (ranks.get(pair, len(ranks)), place) for place, pair in enumerate(itertools.pairwise(symbols))
        )
        if rank == len(ranks):
            break
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return symbols
