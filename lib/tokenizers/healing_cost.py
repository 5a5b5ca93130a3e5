"""What a trimmed vocabulary costs on several texts, before and after some minutes of healing, against the whole model.

    python -m lib.tokenizers.healing_cost [MODEL] --texts wikitext2 c4 novels_en --share 0.667 --steps 60

The entries that stay are those that the texts' training splits use, each split counting alike. Healing is distillation
across vocabularies (`across`) on the training splits, all weights by the one loop, of the rows whose tokens changed
most. Passages of the splits that nobody trained on are read by the whole model, the trimmed, and the healed one; nats
a byte are compared passage by passage. What was not counted, the `usage.SAMPLES` of languages and code, is told too.
"""

import argparse
import json
import math
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import nn

from lib import files
from lib.metrics import bits_per_byte
from lib.metrics.paired_tests import Comparison, paired
from lib.sources import contamination, models, packaged, texts
from lib.tokenizers import across, comparison, copies, usage
from lib.trainers import adapters, loop

SHARE = 2 / 3
COUNTED = 10**8  # of all texts together, so that rare entries keep a count after rounding
DRAWN = 4  # passages drawn for each that healing reads


def counts(tokenizer, splits: dict[str, texts.Text]) -> np.ndarray:
    """How often each entry occurs in several texts, each counting as much as the others, [entries]."""
    total = np.zeros(len(tokenizer))
    for text in splits.values():
        found = usage.count(tokenizer, text.documents)
        total += found / max(1, found.sum()) / len(splits)
    return (total * COUNTED).round().astype(np.int64)


def passages(text: texts.Text, count: int, characters: int, seed: int = 0) -> list[str]:
    """Pieces of a text that begin behind a space, at places that the seed draws; each once, in order."""
    whole = text.text
    room = max(1, len(whole) - characters)
    starts = sorted(random.Random(seed).sample(range(room), min(count, room)))
    found = [whole[start : start + characters].partition(" ")[2] for start in starts]
    return [piece for piece in found if len(piece) > characters // 2]


def nats(model: nn.Module, some: dict[str, list[str]], length: int = 512) -> dict[str, np.ndarray]:
    """{text: nats a byte of each passage}."""
    return {
        name: np.array([bits_per_byte.measure(model, [piece], length=length).value * math.log(2) for piece in pieces])
        for name, pieces in some.items()
    }


def changed_most(rows: across.Rows, count: int) -> list[dict]:
    """The rows with the most tokens that end inside of one that went, at most `count`."""
    return sorted(rows.rows, key=lambda row: -int((row["places"] == across.NOWHERE).sum()))[:count]


def heal_(
    model: nn.Module,
    teacher: nn.Module,
    splits: dict[str, texts.Text],
    *,
    steps: int,
    learning_rate: float = 5e-5,
    batch: int = 4,
    length: int = 256,
    seed: int = 0,
):
    """Train all weights of the trimmed `model` towards `teacher`, in place, on what changed most; returns a history."""
    each = max(1, steps * batch // len(splits))
    rows = []
    for text in splits.values():
        drawn = passages(text, DRAWN * each, 4 * length, seed)
        rows += changed_most(across.rows(drawn, teacher.tokenizer, model.tokenizer, length), each)
    options = {"steps": steps, "learning_rate": learning_rate, "batch": batch, "seed": seed}
    with adapters.full_(model, embeddings=True):
        return loop.train_(model, across.Rows(tuple(rows)), across.Across(teacher), collate=across.collate, **options)


def main(arguments: list[str] | None = None) -> dict:
    """Measure, print, and write the table as JSON where `--folder` is given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default=packaged.NAME)
    parser.add_argument("--texts", nargs="+", default=["packaged"])
    parser.add_argument("--share", type=float, default=SHARE, help="of the entries that stay")
    parser.add_argument("--steps", type=int, default=60, help="of healing, 4 rows of 256 tokens each")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--passages", type=int, default=24, help="of each text that are measured")
    parser.add_argument("--characters", type=int, default=1000, help="of a passage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="where the results go")
    given = parser.parse_args(arguments)
    model, tokenizer = models.load(given.model)
    seen, unseen = _splits(given.texts)
    read = {name: passages(text, given.passages, given.characters, given.seed + 1) for name, text in unseen.items()}
    others = {name: [sample] for name, sample in usage.SAMPLES.items()}
    whole, beside = nats(model, read), nats(model, others)
    smaller = copies.trimmed(model, counts(tokenizer, seen), given.share)
    if smaller is None:
        raise SystemExit(1)
    found = {"entries": [len(tokenizer), len(smaller.tokenizer)], "trimmed": _against(whole, nats(smaller, read))}
    began = time.process_time()
    heal_(smaller, model, seen, steps=given.steps, learning_rate=given.learning_rate, seed=given.seed)
    found["processor_seconds"] = time.process_time() - began
    found |= {
        "healed": _against(whole, nats(smaller, read)),
        "not_counted": _against_single(beside, nats(smaller, others)),
    }
    every = [piece for some in (*read.values(), *others.values()) for piece in some]
    found["round_trips"] = [sum(comparison.round_trips(smaller.tokenizer, piece) for piece in every), len(every)]
    found["options"] = {name: str(value) for name, value in vars(given).items() if name != "file"}
    if given.file:
        files.write_text(given.file, json.dumps(found, indent=1))
    return found


def _splits(names: list[str]) -> tuple[dict[str, texts.Text], dict[str, texts.Text]]:
    """({name: training split, without what the other split holds}, {name: a split that nobody trains on})."""
    seen, unseen = {}, {}
    for name in names:
        try:
            unseen[name] = texts.load(name, "test")
        except FileNotFoundError:  # some have no test split
            unseen[name] = texts.load(name, "valid")
        seen[name] = contamination.without(texts.load(name, "train"), unseen[name])
    return seen, unseen


def _against(whole: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, dict]:
    rows = {}
    for name, values in whole.items():
        compared: Comparison = paired(values, other[name])
        print(f"{name}: nats a byte {values.mean():.4f}, {other[name].mean():.4f}; {compared}", flush=True)
        rows[name] = asdict(compared)
    return rows


def _against_single(whole: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, list[float]]:
    for name, values in whole.items():
        print(f"not counted, {name}: nats a byte {values[0]:.3f}, {other[name][0]:.3f}", flush=True)
    return {name: [float(values[0]), float(other[name][0])] for name, values in whole.items()}


if __name__ == "__main__":
    main()
