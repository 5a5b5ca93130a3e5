"""The records of an architecture study as its tables need them: what was trained, scored and timed, by model."""

import json
from pathlib import Path

from lib.analysis import architecture_pairs as pairs
from lib.evaluation import architecture_scores, architecture_times
from lib.metrics import seeds
from lib.report.tables import fmt
from lib.trainers import architecture_study, presets


class Study:
    """The records of a study, with the scores and times that there are.

    records: the trainings at each arm's best rate; tries: those that chose it. first: the number of blocks that all
    arms have; plain: the arm that all are compared with. times: "arm blocks" -> {"ttft", "tpot"} in seconds, of
    the fastest round, since other work on the machine only ever slows one.
    """

    def __init__(self, folder: Path | str, preset: presets.Preset):
        everything = architecture_study.records(folder)
        self.preset, self.rates = preset, architecture_study.best_rates(preset, everything)
        self.records = [each for each in everything if each["rate"] == self.rates[each["arm"]]]
        asked = {each.name for each in architecture_study.rates(preset)}
        self.tries = [each for each in everything if architecture_study.name(each) in asked]
        self.power = architecture_study.power(preset, everything)
        self.scored = [each for each in architecture_scores.scored(folder) if each["rate"] == self.rates[each["arm"]]]
        found = Path(folder) / architecture_times.SPEED
        samples = json.loads(found.read_text()) if found.exists() else {}
        self.times = {name: {key: min(each) for key, each in one.items()} for name, one in samples.items()}
        self.first, self.plain = preset.blocks[0], preset.arms[0]

    def models(self) -> list[tuple[str, int]]:
        """(Arm, blocks) of which three seeds or more are trained: arms first, then depths."""
        order = [(arm, self.first) for arm in self.preset.arms]
        order += [(arm, depth) for arm in self.preset.curves for depth in sorted(self.preset.blocks[1:])]
        return [each for each in order if len(self.losses(*each)) >= seeds.LEAST]

    def losses(self, arm: str, blocks: int, name: str = "loss") -> pairs.Values:
        """Seed -> loss on unseen text in nats a token, or another number of the records."""
        return pairs.values(self.records, arm, blocks, name)

    def depths(self, arm: str) -> list[int]:
        """The numbers of blocks of which an arm has three seeds or more."""
        return sorted(depth for each, depth in self.models() if each == arm)


def lost(study: Study, arm: str, depth: int, bits: str, kind: str = "loss") -> pairs.Values:
    """Seed -> what quantization to `bits` costs on unseen text: nats a token more, or the KL divergence ("kl")."""
    ours = [each for each in study.scored if (each["arm"], each["blocks"]) == (arm, depth)]
    return {each["seed"]: each["quantized"][bits][kind] for each in ours if bits in each["quantized"]}


def task_values(study: Study, arm: str, name: str) -> pairs.Values:
    """Seed -> score of an arm at the first number of blocks, without digits that no sample makes (BLEU of 1e-200)."""
    ours = [each for each in study.scored if (each["arm"], each["blocks"]) == (arm, study.first)]
    return {each["seed"]: round(answers(each)[name][0], 6) for each in ours if name in answers(each)}


def time_in_blocks(study: Study, arm: str, depth: int) -> float | None:
    """How many plain blocks decode a token in the time of such a model; None where it was not timed."""
    plain = {each: study.times.get(f"{study.plain} {each}") for each in study.depths(study.plain)}
    plain = {each: time["tpot"] for each, time in plain.items() if time}
    ours = study.times.get(f"{arm} {depth}")
    try:
        return pairs.blocks_in(ours["tpot"], plain) if ours else None
    except ValueError as error:
        print(f"no line of decode times: {error}")
        return None


def equal_time(study: Study) -> tuple[pairs.Values, pairs.Values] | None:
    """Headwise's losses, and those of plain models with as many blocks as fit its decode time; None without times."""
    blocks = time_in_blocks(study, "headwise", study.first)
    if blocks is None or not study.losses("headwise", study.first):
        return None
    curve = pairs.curve(study.records, study.depths(study.plain), study.plain)
    return study.losses("headwise", study.first), curve.at(blocks)


def answers(scored: dict) -> dict[str, list]:
    """Task metric -> [value, standard error, n, chance or the best constant answer] of one model."""
    return scored["tasks"] | scored.get("trace", {})


def shown(arm: str, depth: int) -> str:
    """A model's name in a table."""
    return f"{arm}, {depth} blocks"


def mean(values: pairs.Values) -> str:
    """Mean over seeds ± its standard error; – for fewer than three."""
    found = seeds.spread(values) if len(values) >= seeds.LEAST else None
    return fmt(found.value, found.stderr) if found else "–"


def fixed(value: float | None, otherwise: str, digits: int = 4) -> str:
    """A number with so many digits behind the point; `otherwise` where there is none."""
    return otherwise if value is None else f"{value:.{digits}f}"
