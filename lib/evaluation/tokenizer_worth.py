"""What a tokenizer is worth to a small model: one trained with each, on equal bytes of text or with equal compute.

    python -m lib.evaluation.tokenizer_worth TEXT --vocabularies 512 1024 2048 4096 --seeds 5

Bits per byte of text kept out compare models whose tokenizers differ. `bytes`: all read the same bytes, so one with
longer tokens takes fewer steps. `compute`: all multiply alike, 2 · weights · tokens forward, the head's weights
included, so that a large vocabulary pays for its rows. Paired by seed; Holm's correction over all tokenizers.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lib import files
from lib.curation.mixtures import domains, proxies, study
from lib.sources import contamination, texts
from lib.tokenizers import training

BUDGETS = ("bytes", "compute")


def measure(
    tokenizers: dict[str, object],
    seen: list[str],
    unseen: list[str],
    *,
    seeds: Iterable[int],
    steps: int,
    budget: str = "bytes",
    length: int = 128,
    batch: int = proxies.BATCH,
    sizes: dict | None = None,
) -> dict[str, dict]:
    """{tokenizer: {vocabulary, bytes_per_token, steps, bits_per_byte: by seed, weights, embedding}}.

    steps: of the first tokenizer's model; the others' follow from `budget`. Raises ValueError for an unknown budget and
    text that fills no row.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget={budget!r} is unknown; {files.choices(budget, BUDGETS)}")
    seeds, found, first = list(seeds), {}, None
    given = proxies.SIZES | (sizes or {})
    for name, tokenizer in tokenizers.items():
        rows = domains.rows_of(seen, tokenizer, length)
        if not len(rows):
            raise ValueError(f"{name} makes no row of {length} tokens of the text; one is needed; give a longer text.")
        cost = _bytes_per_token(rows, seen) if budget == "bytes" else _work(tokenizer, given)  # of a token
        first = first or cost
        count = max(1, round(steps * first / cost))
        domain = domains.Domains(tokenizer, {"all": rows}, {"unseen": unseen})
        values, model = [], None
        for seed in seeds:
            model = proxies.train(domain, [1.0], steps=count, seed=seed, batch=batch, sizes=sizes)
            values.append(proxies.unseen(model, domain, len(unseen))["unseen"])
        weights = sum(each.numel() for each in model.parameters())
        found[name] = {"vocabulary": len(tokenizer), "bytes_per_token": _bytes_per_token(rows, seen), "steps": count}
        found[name] |= {"bits_per_byte": values, "weights": weights, "embedding": len(tokenizer) * given["hidden_size"]}
        print(f"{name}: {count} steps, {np.mean(values):.4f} bits per byte of {len(seeds)} seeds", flush=True)
    return found


def against(found: dict[str, dict], reference: str) -> dict:
    """Each other tokenizer against the one called `reference`."""
    named = {name: {study.MEAN: each["bits_per_byte"]} for name, each in found.items()}
    return study.against(named, reference)


def _bytes_per_token(rows, seen: list[str]) -> float:
    return sum(len(text.encode()) for text in seen) / max(1, rows.numel())


def _work(tokenizer, given: dict) -> float:
    """Weights that multiply for each token: those of the blocks, and the head's."""
    width, inner, heads = given["hidden_size"], given["intermediate_size"], given["num_attention_heads"]
    narrow = width * given.get("num_key_value_heads", heads) // heads
    return given["num_hidden_layers"] * (2 * width * width + 2 * width * narrow + 3 * width * inner) + width * len(
        tokenizer
    )


def main(arguments: list[str] | None = None) -> dict:
    """Measure by both budgets and print; `--file` keeps the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", nargs="?", default="packaged")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    parser.add_argument("--kind", default="bpe", choices=training.KINDS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of the first vocabulary's model")
    parser.add_argument("--characters", type=int, default=400_000, help="that are trained on")
    parser.add_argument("--file", type=Path)
    given = parser.parse_args(arguments)
    test = texts.load(given.text, "test")
    whole = contamination.without(texts.load(given.text, "train"), test).text[: given.characters]
    seen, unseen = [whole], [document[: proxies.CHARACTERS] for document in list(test.documents)[:20]]
    made = {f"{size:,}": training.train(seen, kind=given.kind, vocabulary=size) for size in given.vocabularies}
    kept = {}
    for budget in BUDGETS:
        print(f"equal {budget}:")
        found = measure(made, seen, unseen, seeds=range(given.seeds), steps=given.steps, budget=budget)
        compared = against(found, next(iter(found)))
        for name, each in compared.items():
            print(f"{name} against {next(iter(found))}: {each}")
        kept[budget] = {"rows": found, "compared": {name: asdict(each) for name, each in compared.items()}}
    if given.file:
        files.write_text(given.file, json.dumps(kept, indent=1))
    return kept


if __name__ == "__main__":
    main()
