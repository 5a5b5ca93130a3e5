"""Text to token ids, by the rules of lm-evaluation-harness 0.4.13."""


def ids(tokenizer, texts: list[str], bos: bool | None = None) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer puts before a text of its own accord.

    bos: True or False overrules the tokenizer. A text that begins with the first token written out gets no second one.
    """
    first = tokenizer.bos_token if tokenizer.bos_token is not None else tokenizer.eos_token
    begun = [first is not None and text.startswith(first) for text in texts]
    found: list[list[int]] = [[] for _ in texts]
    for special in (True, False):
        some = [place for place, has in enumerate(begun) if (not has and bos is not False) is special]
        if some:
            encoded = tokenizer([texts[place] for place in some], add_special_tokens=special).input_ids
            for place, tokens in zip(some, encoded):
                found[place] = list(tokens)
    return found
