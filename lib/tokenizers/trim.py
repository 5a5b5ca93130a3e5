"""Trims the vocabulary of a model: the rows of entries that a corpus does not need go from embedding and head.

    occurrences = usage.count(tokenizer, text.documents)
    tokenizer = trim.trim_(model, occurrences, 32768)

In a small model the embedding is much of what is left after quantizing: 28.3 of the 134.5 M weights of SmolLM2-135M.
The rows that stay keep their weights, so a text none of whose tokens went is predicted as before, but for the
probability that went with the others. Source of the idea: "An Efficient Multilingual Language Model Compression through
Vocabulary Trimming", arXiv 2305.15020; there whole languages go, here whatever the corpus did not use.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from lib import tokenization
from lib.models import blocks
from lib.tokenizers import usage
from lib.tokenizers.entries import Vocabulary

_NESTED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids", "sequence_bias")
_STALE = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json", "special_tokens_map.json", "spiece.model")


def trim_(model: nn.Module, occurrences: np.ndarray, size: int):
    """Take all but `size` entries from the vocabulary of `model`, in place; return its tokenizer, which is its own now.

    occurrences: how often each id occurs in what the model is to read and write, from `usage.count`. Embedding, head,
    configuration and generation settings have the new ids; tied weights stay tied. What other entries a tokenizer file
    holds beside the rules (chat template, lengths) stays. Prints `warning`. Raises ValueError before anything is
    changed: for a size that is not allowed, for a tokenizer whose entries can't go (`entries.Vocabulary`), for an
    embedding that is quantized already, and for a model that has other matrices with a row for each entry.
    """
    tokenizer = model.tokenizer
    rows = _check(model, tokenizer)
    named = {id for settings in _settings(model) for name, id in _ids(settings) if id < rows}
    vocabulary = Vocabulary(tokenizer)
    kept = vocabulary.kept(occurrences, size, needed=named)
    smaller = _tokenizer(tokenizer, vocabulary.without_others(kept), kept)
    new = {old: place for place, old in enumerate(kept)}
    changed = [_renumbered(settings, new) for settings in _settings(model)]
    _cut_(model, torch.tensor(kept))
    for settings, changes in zip(_settings(model), changed):
        for name, value in changes.items():
            setattr(settings, name, value)
    blocks.config(model).vocab_size = len(kept)
    if hasattr(model, "vocab_size"):
        model.vocab_size = len(kept)
    for part in model.modules():
        if isinstance(getattr(part, "vocab_size", None), int):
            part.vocab_size = len(kept)
    model.tokenizer = smaller
    print(warning(tokenizer, smaller))
    return smaller


def warning(before, after) -> str:
    """What a smaller vocabulary costs on samples of other languages, code and numbers, in words."""
    longer = {name: times for name, times in usage.lengthening(before, after).items() if times > 1.005}
    cost = ", ".join(f"{name} {times:.2f}" for name, times in sorted(longer.items(), key=lambda pair: -pair[1]))
    return f"{len(after):,} of {len(before):,} entries stay; times the tokens of before: {cost or 'nowhere more'}"


def _check(model: nn.Module, tokenizer) -> int:
    """Rows of the embedding; raises ValueError for a model whose rows can't be taken away."""
    blocks.refuse_adapters(model)
    table, head = blocks.embeddings(model), blocks.head(model)
    if blocks.is_quantized(table) or blocks.is_quantized(head):
        raise ValueError("the embedding or head is quantized already; one in full precision is needed; trim first.")
    rows, own = table.weight.shape[0], {id(table.weight), id(head.weight), id(getattr(head, "bias", None))}
    others = [
        name for name, weight in model.named_parameters() if id(weight) not in own and weight.shape[:1] == (rows,)
    ]
    if others:
        raise ValueError(
            f"{others[0]} has a row for each of the {rows} entries too; models where only embedding and head have them "
            "are allowed; keep this vocabulary whole."
        )
    if len(tokenizer) > rows:
        raise ValueError(f"a tokenizer of {len(tokenizer)} entries for {rows} rows; give the model its own tokenizer.")
    return rows


@torch.no_grad()
def _cut_(model: nn.Module, kept: Tensor) -> None:
    """Leave the rows `kept` in embedding and head."""
    table, head, tied = blocks.embeddings(model), blocks.head(model), blocks.tied(model)
    chosen = kept.to(table.weight.device)
    table.weight = nn.Parameter(table.weight[chosen].clone(), requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(kept)
    if table.padding_idx is not None:
        found = (kept == table.padding_idx).nonzero()
        table.padding_idx = found.item() if len(found) else None
    if tied:
        head.weight = table.weight
    else:
        head.weight = nn.Parameter(head.weight[kept.to(head.weight.device)].clone(), head.weight.requires_grad)
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(head.bias[kept.to(head.bias.device)].clone(), head.bias.requires_grad)
    head.out_features = len(kept)


def _settings(model: nn.Module) -> list:
    """The configurations that name tokens, each once."""
    found = [model.config, blocks.config(model), getattr(model, "generation_config", None)]
    return list({id(each): each for each in found if each is not None}.values())


def _names(settings) -> Iterable[str]:
    return [name for name in vars(settings) if name.endswith("_token_id") or name in _NESTED]


def _ids(settings) -> list[tuple[str, int]]:
    """(name, id) of every token that a configuration names."""

    def inside(value):
        if isinstance(value, dict):
            value = [*value]
        if isinstance(value, (list, tuple)):
            return [id for each in value for id in inside(each)]
        return [value] if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else []

    return [(name, id) for name in _names(settings) for id in inside(getattr(settings, name))]


def _renumbered(settings, new: dict[int, int]) -> dict:
    """What changes in a configuration: the same tokens under their new ids."""

    def inside(value):
        if isinstance(value, dict):
            return {inside(key): each for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(inside(each) for each in value)
        return new.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    return {name: inside(getattr(settings, name)) for name in _names(settings)}


def _tokenizer(tokenizer, rules: dict, kept: list[int]):
    """A tokenizer like `tokenizer` with other `rules`, made by its own files: template, lengths and names stay."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in _STALE:  # the rules stand in tokenizer.json
            (Path(folder) / name).unlink(missing_ok=True)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
        new = {str(old): str(place) for place, old in enumerate(kept)}
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {new[id]: each for id, each in settings["added_tokens_decoder"].items()}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        smaller = AutoTokenizer.from_pretrained(folder)
    smaller.name_or_path = tokenizer.name_or_path
    if len(smaller) != len(kept) or tokenization.first_ids(smaller) != [
        kept.index(id) for id in tokenization.first_ids(tokenizer)
    ]:
        raise ValueError(
            f"{type(tokenizer).__name__} came back with {len(smaller)} entries where {len(kept)} were kept, or begins "
            "a text otherwise; a tokenizer whose rules stand in tokenizer.json is needed; keep this one whole."
        )
    return smaller
