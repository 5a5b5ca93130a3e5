"""Trains tokenizers: byte-pair encoding, unigram and WordPiece, with what is decided about digits, spaces and signs.

    tokenizer = training.train(documents, kind="unigram", vocabulary=8192, digits="three", seed=0)

All three work on bytes (as GPT-2 writes them, one sign a byte), so each of them writes every text and reads back what
was written, whatever the script: unless it normalizes, which changes some texts before they are split. Trained by the
`tokenizers` library; the code of `trainers.byte_pairs`, whose tokenizer is this one's default. Byte-pair encoding:
arXiv 1508.07909; unigram: arXiv 1804.10959; WordPiece: Schuster and Nakajima 2012, with the longest first.
"""

import json
from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lib import files
from lib.trainers import byte_pairs

KINDS = ("bpe", "unigram", "wordpiece")
DIGITS = ("whole", "single", "three")  # a number is split as a word is, into digits, into threes from its left
SPACES = ("runs", "single")  # several blanks may be one token, or each is one
PUNCTUATION = ("runs", "single")
NORMALIZATIONS = (None, "NFC", "NFKC")
INSIDE = "▁"  # begins an entry of WordPiece that continues a word: no sign that a byte is written with
LONGEST = 64  # bytes of a piece that WordPiece and unigram split, whose time grows with the square of it


def train(
    documents: Iterable[str] | Mapping[str, Iterable[str]],
    *,
    kind: str = "bpe",
    vocabulary: int = 4096,
    digits: str = "whole",
    spaces: str = "runs",
    punctuation: str = "runs",
    normalization: str | None = None,
    special: Iterable[str] = (),
    temperature: float = 1.0,
    characters: int = byte_pairs.CHARACTERS,
    seed: int = 0,
):
    """A `PreTrainedTokenizerFast` of `vocabulary` tokens; the same arguments give the same one.

    documents: texts, or the texts of each language, of which `temperature` draws: a language with n characters gets a
    share ∝ n^(1 / temperature) of `characters`, 1 as there are, larger ones evener, no language more than it has.
    special: tokens beside `byte_pairs.END` that no text is split into. Raises ValueError for options that don't exist,
    a vocabulary that does not hold them and the bytes, half a character, and text too short.
    """
    special = [byte_pairs.END, *dict.fromkeys(each for each in special if each != byte_pairs.END)]
    _check(kind=(kind, KINDS), digits=(digits, DIGITS), spaces=(spaces, SPACES))
    _check(punctuation=(punctuation, PUNCTUATION), normalization=(normalization, NORMALIZATIONS))
    inside = byte_pairs.BYTES if kind == "wordpiece" else 0
    byte_pairs.check_size(vocabulary, len(special) + inside)
    core = tokenizers.Tokenizer(_model(kind))
    if normalization:
        core.normalizer = getattr(normalizers, normalization)()
    core.pre_tokenizer = _splitting(kind, digits, spaces, punctuation)
    core.decoder = decoders.ByteLevel()
    if kind == "wordpiece":
        core.decoder = decoders.Sequence([decoders.Replace(INSIDE, ""), decoders.ByteLevel()])
    chosen = sampled(documents, temperature, characters, seed)
    if kind == "bpe":
        found = byte_pairs.fit(core, vocabulary, chosen, special)
    elif kind == "unigram":
        found = _same_each_time(byte_pairs.fit(core, vocabulary, chosen, special, max_piece_length=LONGEST))
    else:  # each byte inside of a word is made known like a special token, or its id would differ from run to run
        known = [*special, *(INSIDE + byte for byte in sorted(pre_tokenizers.ByteLevel.alphabet()))]
        found = byte_pairs.fit(core, vocabulary, chosen, known, continuing_subword_prefix=INSIDE)
        found = _with_rules(found, added_tokens=_rules(found)["added_tokens"][: len(special)])
    found.add_special_tokens({"additional_special_tokens": special[1:]})
    return found


def sampled(documents, temperature: float, characters: int, seed: int) -> list[str]:
    """The texts that are trained on, drawn by `seed`."""
    if not isinstance(documents, Mapping):
        return list(byte_pairs.drawn(documents, characters, seed))
    held = {language: list(texts) for language, texts in documents.items()}
    shares = language_shares({name: sum(map(len, texts)) for name, texts in held.items()}, temperature, characters)
    return [text for name, texts in held.items() for text in byte_pairs.drawn(texts, shares[name], seed)]


def language_shares(sizes: dict[str, int], temperature: float, characters: int) -> dict[str, int]:
    """How many characters of each language are used, of `characters` in all, where there are `sizes`.

    What a language lacks goes to the others in their proportions.
    """
    if not temperature > 0 or not sizes or min(sizes.values()) < 1:
        raise ValueError(
            f"temperature={temperature!r} of languages with {sizes} characters; a number above 0, and a text of each "
            "are needed; 1 takes what is there, 3 is usual for many languages."
        )
    weights = {language: size ** (1 / temperature) for language, size in sizes.items()}
    found: dict[str, int] = {}
    left = min(characters, sum(sizes.values()))
    while weights:
        total = sum(weights.values())
        full = [name for name, weight in weights.items() if sizes[name] <= left * weight / total]
        if not full:
            return found | {name: max(1, round(left * weight / total)) for name, weight in weights.items()}
        for name in full:
            found[name] = sizes[name]
            del weights[name]
        left -= sum(sizes[name] for name in full)
    return found


def _check(**given) -> None:
    for name, (value, allowed) in given.items():
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown; {files.choices(value, allowed)}")


def _model(kind: str):
    if kind == "wordpiece":
        return models.WordPiece(unk_token=byte_pairs.END, max_input_chars_per_word=2 * LONGEST)
    return models.BPE() if kind == "bpe" else models.Unigram()


def _splitting(kind: str, digits: str, spaces: str, punctuation: str):
    """What a text is split into before its entries are looked for: no entry reaches over such a border."""
    parts = []
    if spaces == "single":
        parts.append(pre_tokenizers.Split(Regex(r"\s"), "isolated"))
    if digits != "whole":
        parts.append(pre_tokenizers.Split(Regex(r"\p{N}" if digits == "single" else r"\p{N}{1,3}"), "isolated"))
    if punctuation == "single":
        parts.append(pre_tokenizers.Split(Regex(r"[\p{P}\p{S}]"), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    if kind != "bpe":
        parts.append(pre_tokenizers.FixedLength(length=LONGEST))
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def _same_each_time(found):
    """The unigram tokenizer with scores that don't depend on the order in which the library went through a hash table.

    They are rounded, which takes away the order of a sum; and bytes that no entry had, to which the library gives the
    lowest score and ever 0.0001 more, all get the lowest.
    """
    entries = _rules(found)["model"]["vocab"]
    special = len(found.backend_tokenizer.get_added_tokens_decoder())
    least = min(score for _, score in entries)
    near = least + byte_pairs.BYTES * 1.1e-4
    ordered = [(entry, round(least if len(entry) == 1 and score < near else score, 6)) for entry, score in entries]
    ordered = ordered[:special] + sorted(ordered[special:], key=lambda pair: (-pair[1], pair[0]))
    return _with_rules(found, model=_rules(found)["model"] | {"vocab": ordered})


def _rules(found) -> dict:
    return json.loads(found.backend_tokenizer.to_str())


def _with_rules(found, **changed):
    """A tokenizer with some of its rules replaced."""
    core = tokenizers.Tokenizer.from_str(json.dumps(_rules(found) | changed))
    end = byte_pairs.END
    return type(found)(tokenizer_object=core, bos_token=end, eos_token=end, pad_token=end)
