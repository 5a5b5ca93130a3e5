"""A student of few bits as tables: its ladder, what it is ahead of, and the three variants side by side.

    python -m lib.report.distillation_tables cpu     # writes data/published/distillation.json

They read what `distillation.pipeline` and `distillation.variants` measured; what was not measured has no row.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lib import published
from lib.distillation import judging, pipeline, post_training, presets, variants
from lib.distillation.ladder import Ladder
from lib.metrics import verdicts
from lib.metrics.score import from_values
from lib.peers import two_bits
from lib.report import publishing, variant_rows
from lib.report.tables import fmt

NAME = "distillation"
LEVELS = {
    "integer": "whole zero points", "half": "zero points in halves", "balanced": "balanced levels",
    "pairs": "pairs of weights with codebooks",
}  # fmt: skip
STEPS = {"start": ("start",), "distilled": ("start", "training")}  # a rung -> what its processor time is made of
# before, after
PAIRS = (("start", "distilled"), (post_training.RUNG, "distilled"), (two_bits.NAME, "distilled"))


def tables(preset: presets.Preset, folder: Path | str) -> dict[str, dict]:
    """The tables of the run in `folder`, those with rows; ValueError where nothing is measured."""
    folder = Path(folder)
    ladder = Ladder(folder)
    made = {"ladder": _ladder(ladder), "pairs": _pairs([*ladder.rows, *rivals(folder)]), "rivals": _rivals(folder)}
    if (folder / "variants" / variants.PLAN).exists():
        _, found = variants.measured(folder / "variants")
        label = f"{preset.bits} bits"
        made |= {"variants": variant_rows.table(found, label), "tasks": variant_rows.pairs(found, label)}
        made |= {"lookup": variant_rows.lookup(found, label)}
    made = {name: table for name, table in made.items() if table["rows"]}
    if not made:
        raise ValueError(
            f"{folder} holds nothing that was measured; run python -m lib.distillation.pipeline first, or give the "
            "folder of a run."
        )
    return made


def _ladder(ladder: Ladder) -> dict:
    rows = []
    for row in ladder.rows:
        seconds = [ladder.kept["seconds"].get(step) for step in STEPS.get(row["rung"], (row["rung"],))]
        minutes = "–" if None in seconds else f"{sum(seconds) / 60:.1f}"
        kl, ratio = fmt(row["kl"], row["kl_stderr"]), fmt(row["ratio"], row["ratio_stderr"])
        floor = fmt(row.get("kl_baseline"))
        rows.append([f"{row['rung']}, {text(row['text'])}", kl, floor, ratio, str(row["n"]), minutes])
    columns = ["", "KL, nats a token", "KL without context", "perplexity, times the original's", "n", "CPU minutes"]
    return {"title": "What each rung gave, on text that nothing was tuned on", "columns": columns, "rows": rows}


def rivals(folder: Path) -> list[dict]:
    """The rows of other projects' results, measured as the ladder's."""
    kept = json.loads(path.read_text()) if (path := folder / two_bits.FILE).exists() else {}
    return [row for each in kept.values() for row in each.get("rows", ())]


def _rivals(folder: Path) -> dict:
    """What other projects reach, or why it is not known."""
    kept = json.loads(path.read_text()) if (path := folder / two_bits.FILE).exists() else {}
    rows = []
    for name, each in kept.items():
        if "skipped" in each:
            rows.append([name, "–", "–", "–", "–", "–", f"left out: {each['skipped'].partition(';')[0]}"])
        for row in each.get("rows", ()):
            result = each["result"]
            cost = [f"{(result['seconds'] or 0) / 60:.1f}", f"{(result['packed_bytes'] or 0) / 1e6:.1f}"]
            scores = [fmt(row["kl"], row["kl_stderr"]), fmt(row["ratio"], row["ratio_stderr"]), str(row["n"])]
            rows.append([f"{name} {result['version']}, {text(row['text'])}", *scores, *cost, ""])
    columns = ["", "KL, nats a token", "perplexity, times the original's", "n", "minutes on the clock", "MB", "why not"]
    return {"title": "Other projects, on the same windows and texts", "columns": columns, "rows": rows}


def _pairs(found: list[dict]) -> dict:
    """How much nearer to the original one rung is than another, and what the control gained by its text alone."""
    rungs, gains = {row["rung"] for row in found}, {}
    for before, after in PAIRS:
        if {before, after} <= rungs:
            gains |= {
                f"{after} against {before}, {text(name)}": difference(found, before, after, name)
                for name in judging.gains(found, before, after)
            }
    for row in found:
        if row["rung"] == pipeline.CONTROL and "original_nll" in row:
            name = f"loss of the control below the original's, {text(row['text'])}"
            gains[name] = np.array(row["original_nll"]) - np.array(row["nll"])
    return paired(gains, "In pairs over windows, nats a token: above 0 the first is nearer (has the lower loss)")


def difference(found: list[dict], before: str, after: str, name: str) -> np.ndarray:
    """Window by window, by how many nats a token `after` is nearer to the original than `before` on a text."""
    kept = {row["rung"]: np.array(row["divergences"]) for row in found if row["text"] == name}
    return kept[before] - kept[after]


def paired(gains: dict[str, np.ndarray], title: str) -> dict:
    """The table of paired differences, corrected together."""
    told, rows = verdicts.verdicts(gains), []
    for name, each in gains.items():
        score = from_values(each, "nats", higher_is_better=True, baseline=0.0)
        low, high = score.interval or (None, None)
        ends = [fmt(low), fmt(high), f"{told[name].p:.2g}"]
        rows.append([name, fmt(score.value, score.stderr), *ends, str(score.n), str(told[name])])
    return {"title": title, "columns": ["", "gain", "from", "to", "p", "n", "answer"], "rows": rows}


def text(name: str) -> str:
    """A text's name in a table: a path is shortened to the file."""
    return Path(name).stem


def document(name: str, folder: Path | str, notes: Iterable[str] = ()) -> dict:
    """What `published.load` reads: the fields of a `Published`, without its name."""
    made = presets.by_name(name)
    read = made.read or made.texts
    own = [text(each) for each in made.judged if each in read]
    asked = f", and answers of the original to {made.answers} prompts" if made.answers else ""
    asked += f", {made.wished:.0%} of them with a wish of form" if made.wished else ""
    protocol = (
        f"Preset {name} of {made.model}: {made.bits} bits in groups of {made.group_size}, {LEVELS[made.levels]}, "
        f"start by {made.start} on {made.calibration} windows, {made.windows} windows of {made.length} tokens read "
        f"once (texts by share: {', '.join(f'{text(each)} {share:g}' for each, share in read.items())}){asked}; judged "
        f"on {', '.join(f'{text(each)} ({split})' for each, split in made.judged.items())}; of these, "
        f"{', '.join(own) or 'none'} is of a collection whose other split was trained on."
    )
    about = publishing.about("32_int2_distillation", "distillation.yaml", protocol)
    return about | {"tables": tables(made, folder), "notes": list(notes)}


def shown() -> str:
    """The published tables as Markdown, or what has to run before there are some."""
    if not (published.folder() / f"{NAME}.json").is_file():
        return (
            "No run of an hour is published yet. `python -m lib.distillation.pipeline cpu --control --post-training`, "
            "`python -m lib.distillation.variants cpu` and `python -m lib.report.distillation_tables cpu` make one."
        )
    found = published.load(NAME)
    parts = [found.about()]
    for key, each in found.tables.items():
        parts += [f"**{each['title']}**", _markdown(found.table(key))]
    return "\n\n".join([*parts, found.log()])


def _markdown(table) -> str:
    lines = [[table.index.name or "", *table.columns], [":--", *["--:"] * len(table.columns)]]
    lines += [[str(name), *map(str, row)] for name, row in zip(table.index, table.values)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""

    def made(preset: str, folder: Path | None, notes: list[str]) -> dict:
        presets.by_name(preset)
        return document(preset, folder or pipeline.place(preset), notes)

    return publishing.main(NAME, "distillation_tables", presets.PRESETS, made, arguments)


if __name__ == "__main__":
    sys.exit(main())
