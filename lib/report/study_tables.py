"""An architecture study as published tables (`lib.published`): made of its records, with intervals over seeds.

    python -m lib.report.study_tables evening

writes data/published/architectures.json, which notebook 12_architecture_study draws.
"""

import itertools
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from lib import published
from lib.analysis import architecture_pairs as pairs
from lib.report import publishing
from lib.report.study_pairs import beside_plain, compared, harder, task_pairs, worth
from lib.report.study_records import Study, answers, fixed, lost, mean, shown, task_values
from lib.trainers import presets
from lib.trainers.architecture_study import place

NAME = "architectures"
POINTS = 24  # of a loss curve


def tables(study: Study) -> dict[str, dict]:
    """All tables that the study has enough trainings and scores for, by key."""
    makers = {
        "rates": ("Bits per byte with each learning rate, one seed", rates),
        "noise": ("What the first arm's seeds say before any comparison, bits per byte", noise),
        "models": ("Every model: its size, quality and times", models),
        "beside plain": ("What each model gains on the first one, pairs over seeds, bits per byte", beside_plain),
        "pairs": ("Gains in pairs over seeds, nats a token", compared),
        "worth": ("Headwise blocks in plain blocks", worth),
        "quantized": ("What GPTQ costs, nats a token more on unseen text", quantized),
        "harder": ("Harder to compress than plain? Pairs over seeds, nats a token", harder),
        "tasks": ("Tasks: means over seeds beside chance or the best constant answer", tasks),
        "task pairs": ("Tasks in pairs with plain over seeds", task_pairs),
        "losses": ("Training loss, nats a token, over seeds", losses),
    }
    made = {key: (title, *make(study)) for key, (title, make) in makers.items()}
    return {
        key: {"title": title, "columns": columns, "rows": rows} for key, (title, columns, rows) in made.items() if rows
    }


def rates(study: Study):
    """What each arm reached with each learning rate: (columns, rows), as all tables here."""
    columns = [f"{rate:g}" for rate in study.preset.rates]
    found = {(each["arm"], f"{each['rate']:g}"): each["bits_per_byte"] for each in study.tries}
    rows = [[arm, *(fixed(found.get((arm, rate)), "diverged") for rate in columns)] for arm in study.preset.arms]
    return ["arm", *columns], rows


def noise(study: Study):
    """The spread of the first arm, and which difference could be seen: known before any comparison."""
    found = study.power or {}
    words = {"deviation": "standard deviation of one training", "detectable": "difference seen in four studies of five"}
    return ["", "bits per byte"], [[words[key], f"{value:.4f}"] for key, value in found.items()]


def models(study: Study):
    """Size, quality, training and inference of each model; quality with its standard error over seeds."""
    columns = ["model", "M weights", "M FLOP a token", "seeds", "bits per byte", "training, s", "tokens/s", "MFU, %"]
    peak = max(each["peak_flops"] or 0 for each in study.records if "peak_flops" in each)
    rows = []
    for arm, depth in study.models():
        ours = [each for each in study.records if (each["arm"], each["blocks"]) == (arm, depth) and "loss" in each]
        speed = statistics.median(each["tokens_per_second"] for each in ours)
        one, time = ours[0], study.times.get(f"{arm} {depth}", {})
        share = 100 * 3 * one["flops_per_token"] * speed / peak if peak else None
        row = [shown(arm, depth), f"{one['parameters'] / 1e6:.3f}", f"{one['flops_per_token'] / 1e6:.3f}"]
        row += [str(len(ours)), mean(study.losses(arm, depth, "bits_per_byte"))]
        row += [f"{statistics.median(each['seconds'] for each in ours):.0f}", f"{speed:,.0f}", fixed(share, "–", 1)]
        row.append(f"{max(each['peak_bytes'] for each in ours) / 1e6:.0f}")
        row += [f"{1e3 * time[key]:.3f}" if time else "–" for key in ("ttft", "tpot")]
        packed = study.times.get(f"{arm} {depth} packed")
        rows.append([*row, f"{1e3 * packed['tpot']:.3f}" if packed else "–"])
    return [*columns, "peak, MB", "prefill, ms", "decode, ms a token", "packed, ms a token"], rows


def quantized(study: Study):
    """What each width costs each model."""
    widths = sorted({bits for each in study.scored for bits in each["quantized"]}, key=int, reverse=True)
    columns = ["model", *(f"{what}, {bits} bits" for what in ("loss", "KL") for bits in widths)]
    rows = []
    for arm, depth in study.models():
        cells = [mean(lost(study, arm, depth, bits, kind)) for kind in ("loss", "kl") for bits in widths]
        if set(cells) - {"–"}:
            rows.append([shown(arm, depth), *cells])
    return columns, rows


def tasks(study: Study):
    """Scores of the models with the first number of blocks."""
    names = list(dict.fromkeys(name for each in study.scored for name in answers(each)))
    rows = []
    for name in names:
        beside = next(answers(each)[name] for each in study.scored if name in answers(each))
        cells = [mean(task_values(study, arm, name)) for arm in study.preset.arms]
        rows.append([name, str(beside[2]), fixed(beside[3], "–", 3), *cells])
    return ["task", "n", "chance or constant", *study.preset.arms], rows


def losses(study: Study):
    """Training losses in parts of the training: the mean over seeds ± their standard deviation."""
    length = study.preset.batch * study.preset.length
    curves = {
        (arm, depth): list(pairs.values(study.records, arm, depth, "losses").values()) for arm, depth in study.models()
    }
    if not curves:
        return [], []
    steps = min(len(each) for some in curves.values() for each in some)
    edges = [round(place * steps / POINTS) for place in range(POINTS + 1)]
    rows = []
    for begin, end in itertools.pairwise(edges):
        cells = []
        for some in curves.values():
            means = [statistics.fmean(each[begin:end]) for each in some]
            cells.append(f"{statistics.fmean(means):.3f} ± {statistics.stdev(means):.3f}")
        rows.append([f"{(begin + end) / 2 * length:,.0f}", *cells])
    return ["tokens", *(shown(*each) for each in curves)], rows


def of(preset: str, folder: Path | None = None) -> published.Published:
    """The tables of a preset's study (in `folder`), in the form of those that are published."""
    return published.Published(NAME, **document(Study(folder or place(preset), presets.by_name(preset))))


def document(study: Study, notes: Iterable[str] = ()) -> dict:
    """What `published.load` reads: the fields of a `Published`, without its name."""
    preset, counts = study.preset, [len(study.losses(*each)) for each in study.models()]
    shown_seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    protocol = (
        f"{preset.tokens:,} tokens of {preset.text} each, {preset.length} a row and {preset.batch} rows a step, "
        f"vocabulary {preset.vocabulary}, width {preset.sizes['hidden_size']}; {shown_seeds} seeds, "
        f"each with one order of data and the same first values in all arms; {preset.unseen} unseen rows."
    )
    about = publishing.about("12_architecture_study", "architectures.yaml", protocol)
    return about | {"tables": tables(study), "notes": list(notes)}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""

    def made(preset: str, folder: Path | None, notes: list[str]) -> dict:
        return document(Study(folder or place(preset), presets.by_name(preset)), notes)

    return publishing.main(NAME, "study_tables", presets.PRESETS, made, arguments)


if __name__ == "__main__":
    sys.exit(main())
