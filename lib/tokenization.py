"""Text to token ids, by one rule: a text gets the special tokens that its tokenizer puts before it, but never twice.

A chat template often writes the first token ("<s>", "<|begin_of_text|>") as text, and the tokenizer would add another.
So a text that begins with it gets no special tokens: the rule of lm-evaluation-harness 0.4.13, which looks for the
tokenizer's BOS or EOS; here also for what the tokenizer really puts there, which may be neither ("[gMASK]<sop>").
Needs no torch.

A tokenizer can be changed at any time (tokens added, a normalizer replaced, special tokens split like other text), so
nothing is cached per object: cached results are stored under `identity`, a hash of its rules.
"""

import hashlib

PROBE = "Éva said:\n  12 don'ts <s></s>"  # shows moved spaces, normalisation, digits, special tokens in text


def ids(tokenizer, texts: list[str], bos: bool | None = None) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer puts before a text by default.

    tokenizer: one of transformers, or anything with `encode` and `decode` as they have them. bos: True or False
    overrules the tokenizer. A text that begins with the first token written out gets no second one. Raises ValueError
    for a text with half a character.
    """
    for text in texts:
        check(text)
    begun = [bos is False or has for has in begin(tokenizer, texts)]
    found: list[list[int]] = [[] for _ in texts]
    for special in (True, False):
        some = [place for place, has in enumerate(begun) if has is not special]
        if some:
            for place, tokens in zip(some, _encode(tokenizer, [texts[place] for place in some], special)):
                found[place] = list(tokens)
    return found


def begin(tokenizer, texts: list[str]) -> list[bool]:
    """Whether each text begins with its first token written out, as chat templates do; it gets no second one."""
    first = tuple(first_texts(tokenizer))
    return [text.startswith(first) for text in texts]


def check(text: str, what: str = "the text") -> str:
    """The text itself; raises ValueError where it holds half a character (a lone surrogate), naming the place.

    Such text comes from cutting JSON between the two halves of an emoji ("\\ud83d"): it has no UTF-8 form.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds half a character, {text[error.start]!r}, at place {error.start}; text that UTF-8 can write "
            'is allowed; mend it, or replace such halves by "\\ufffd".'
        ) from None
    return text


def mend(text: str) -> str:
    """The text with U+FFFD for each half of a character; two halves that belong together become their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def first_texts(tokenizer) -> set[str]:
    """Texts of the first token with which a text may already begin: BOS (else EOS), and the tokenizer's own prefix."""
    named = getattr(tokenizer, "bos_token", None) or getattr(tokenizer, "eos_token", None)
    before = first_ids(tokenizer)
    return {named, tokenizer.decode(before, skip_special_tokens=False) if before else None} - {None, ""}


def first_ids(tokenizer) -> list[int]:
    """The token ids that the tokenizer puts before a text."""
    bare, whole = (_encode(tokenizer, ["a"], special)[0] for special in (False, True))
    places = range(len(whole) - len(bare) + 1)
    return list(next((whole[:place] for place in places if whole[place : place + len(bare)] == bare), []))


def beginning(tokenizer) -> list[int]:
    """The token ids for the beginning of a text that must have one: the tokenizer's own, else BOS, else EOS.

    Raises ValueError for a tokenizer that has none of them.
    """
    ends = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    found = first_ids(tokenizer) or [token for token in ends if token is not None][:1]
    if not found:
        raise ValueError(
            f"{type(tokenizer).__name__} puts nothing before a text and has neither BOS nor EOS; one is needed where "
            "nothing stands before a text; set tokenizer.bos_token."
        )
    return found


def before_windows(tokenizer, bos: bool | None = None) -> list[int]:
    """Token ids that each window of a text begins with: what the tokenizer puts before a text, often nothing.

    bos: False is nothing in any case; True is `beginning`, BOS even where the tokenizer puts none.
    """
    if bos is None:
        return first_ids(tokenizer)
    return beginning(tokenizer) if bos else []


def identity(tokenizer) -> str:
    """Hexadecimal SHA-256 of the rules of a tokenizer: two with the same turn every text into the same ids.

    Names, paths, padding and truncation are no part of it: a tokenizer that was saved and loaded has the hash it had.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    ends = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    if core is not None:
        rules = core.to_str()
        rules = rules[rules.index('"added_tokens"') :]  # before it stand truncation and padding, which each call sets
        settings = bool(tokenizer.split_special_tokens)  # passed to the backend by each call
    else:
        rules = repr(sorted(tokenizer.get_vocab().items()))
        added = sorted(
            (token, repr(content)) for token, content in getattr(tokenizer, "added_tokens_decoder", {}).items()
        )
        settings = type(tokenizer).__name__, added, list(tokenizer(PROBE)["input_ids"])
    return hashlib.sha256(f"{rules}\n{settings}\n{ends}".encode()).hexdigest()


def is_written_down(tokenizer) -> bool:
    """Whether `identity` covers all rules of a tokenizer: one of transformers over `tokenizers`, no other code."""
    kind = type(tokenizer)
    return getattr(tokenizer, "backend_tokenizer", None) is not None and kind.__module__.startswith("transformers.")


def _encode(tokenizer, texts: list[str], special: bool) -> list[list[int]]:
    if callable(tokenizer):
        return [list(each) for each in tokenizer(texts, add_special_tokens=special).input_ids]
    return [list(tokenizer.encode(text, add_special_tokens=special)) for text in texts]
