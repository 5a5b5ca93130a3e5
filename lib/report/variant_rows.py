"""Rows of the table of variants: the original, the student, and the student with prompt lookup, each beside what costs
nothing, and the student against the original and a rival, sample by sample."""

from pathlib import Path

from lib.distillation import variants
from lib.distillation.variant_parts import ORIGINAL, RIVAL, STUDENT
from lib.metrics import paired_tests
from lib.metrics.paired_tests import Comparison
from lib.report.tables import fmt

NONE, ALIKE = "–", "as without"
TIMES = {"prefill": ("reading, tokens/s", 1), "tpot": ("writing, ms a token", 1e3), "peak": ("peak memory, MB", 1e-6)}


def columns(label: str) -> list[str]:
    """The columns: what costs nothing, the three variants, the rival, and the number of samples."""
    return ["", "without a model", "16 bits", label, f"{label}, lookup", RIVAL, "n"]


def table(found: dict, label: str) -> dict:
    """Every value ± its standard error, of all that is measured."""
    rows = [*_texts(found["texts"]), *_tasks(found["tasks"]), *_prompts(found["prompts"]), *_fresh(found)]
    return {
        "title": f"Three variants: 16 bits, {label}, {label} with prompt lookup",
        "columns": columns(label),
        "rows": rows,
    }


def _texts(found: dict) -> list[list[str]]:
    rows = []
    for name, part in found.items():
        systems = part["systems"]
        for metric, key in (("perplexity", "perplexity"), ("KL, nats a token", "kl")):
            cells = {each: fmt(row[key], row[f"{key}_stderr"]) for each, row in systems.items()}
            floor = fmt(systems[STUDENT][f"{key}_baseline"])
            rows.append(_row(f"{metric}, {Path(name).stem}", floor, cells, ALIKE, systems[STUDENT]["n"]))
    return rows


def _tasks(found: dict) -> list[list[str]]:
    rows = []
    for task, part in found.items():
        for metric in part["metrics"]:
            scores = {name: each[metric] for name, each in part["systems"].items()}
            cells = {name: fmt(each["value"], each["stderr"]) for name, each in scores.items()}
            rows.append(_row(f"{task}, {metric}", fmt(scores[STUDENT]["baseline"]), cells, ALIKE, scores[STUDENT]["n"]))
    return rows


def _prompts(found: dict) -> list[list[str]]:
    rows = []
    for kind, part in found.items():
        cells = {name: _cell(each["seconds_per_token"], 1e3) for name, each in part["systems"].items()}
        number = part["systems"][STUDENT]["seconds_per_token"]["n"]
        rows.append(_row(f"{kind} prompts, ms a token", NONE, cells, cells.pop("lookup"), number))
    return rows


def _fresh(found: dict) -> list[list[str]]:
    rows = []
    for part in found[variants.FRESH].values():
        for metric, (title, factor) in TIMES.items():
            cells = {name: _cell(each.get(metric), factor) for name, each in part["systems"].items()}
            number = part["systems"][STUDENT]["tpot"]["n"]
            rows.append(_row(f"in a process of its own: {title}", NONE, cells, cells.pop("lookup", NONE), number))
        sizes = {name: f"{each / 1e6:.1f}" for name, each in part["bytes"].items()}
        rows.append(_row("artifact, MB", NONE, sizes, sizes[STUDENT], 1))
    return rows


def _row(name: str, floor: str, cells: dict[str, str], lookup: str, number: int) -> list[str]:
    return [name, floor, cells[ORIGINAL], cells[STUDENT], lookup, cells.get(RIVAL, NONE), str(number)]


def _cell(score: dict | None, factor: float) -> str:
    if score is None:
        return NONE
    return fmt(factor * score["value"], None if score["stderr"] is None else factor * score["stderr"])


def lookup(found: dict, label: str) -> dict:
    """What prompt lookup brings on each kind of prompt, and whether the answers stayed the same."""
    rows = []
    for kind, part in found["prompts"].items():
        ours = part["systems"]["lookup"]
        names = ("tokens_per_step", "speed_up", "identical")
        rows.append([kind, *(_cell(ours[name], 1) for name in names), str(ours["speed_up"]["n"])])
    named = ["", "tokens a step", f"times as fast as {label} alone", "share of equal answers", "n"]
    return {"title": "Prompt lookup by kind of prompt", "columns": named, "rows": rows}


def pairs(found: dict, label: str) -> dict:
    """The main score of each task in pairs: the student less the original, less the rival; what it kept; marks."""
    told, kept, marks = {}, {}, {}
    for task, part in found["tasks"].items():
        metric = part["metrics"][0]
        against = part["against"][STUDENT][metric]
        name = f"{task}, {metric}: {label} less 16 bits"
        told[name] = Comparison(**against["difference"])
        kept[name], marks[name] = _kept(against), part["systems"][STUDENT][metric]["marks"]
        if RIVAL in part["against"]:
            told[f"{task}, {metric}: {label} less {RIVAL}"] = Comparison(**part["ahead"][metric])
            name = f"{task}, {metric}: {RIVAL} less 16 bits"
            told[name] = Comparison(**part["against"][RIVAL][metric]["difference"])
            kept[name] = _kept(part["against"][RIVAL][metric])
            marks[name] = part["systems"][RIVAL][metric]["marks"]
    rows = []
    for name, each in paired_tests.holm(told).items():
        answer = "no difference seen" if not each.seen else "a gain" if each.difference > 0 else "a loss"
        span = [fmt(each.difference, each.stderr), f"{each.low:.3f}", f"{each.high:.3f}", f"{each.p:.2g}"]
        rows.append([name, *span, str(each.n), answer, kept.get(name, NONE), "; ".join(marks.get(name, []))])
    named = [
        "",
        "difference",
        "from",
        "to",
        "p",
        "n",
        "answer",
        "kept of what the original has above the floor",
        "marks",
    ]
    return {"title": "Tasks in pairs over samples, corrected together (Holm)", "columns": named, "rows": rows}


def _kept(against: dict) -> str:
    found = against["kept"]
    if found is None:
        return against["of"]
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}], {against['of']}"
