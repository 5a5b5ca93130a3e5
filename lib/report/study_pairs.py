"""The tables of an architecture study that compare: differences in pairs over seeds, with intervals."""

from lib.analysis import architecture_pairs as pairs
from lib.metrics import intervals, seeds
from lib.report.study_records import Study, answers, equal_time, fixed, lost, shown, task_values, time_in_blocks
from lib.report.tables import fmt

FULL = ("seeds", "gain, nats a token", "from", "to", "p (Holm)", "answer")


def beside_plain(study: Study):
    """How much better than plain at the first number of blocks each model is, in pairs: what costs buy."""
    first = study.losses(study.plain, study.first, "bits_per_byte")
    others = [each for each in study.models() if each != (study.plain, study.first)]
    sides = {shown(*each): (study.losses(*each, "bits_per_byte"), first) for each in others}
    sides = {name: both for name, both in sides.items() if len(both[0].keys() & both[1].keys()) >= seeds.LEAST}
    rows = [[name, *row[1:-2]] for name, row in zip(sides, _rows(pairs.compared(sides)))] if sides else []
    return ["model", "seeds", "gain, bits per byte", "from", "to"], rows


def compared(study: Study):
    """Losses in pairs: each arm with plain, headwise with its controls and with deeper and equally fast models."""
    first, plain = study.first, study.plain
    sides = {f"{arm}, {first} blocks, against plain": ((arm, first), (plain, first)) for arm in study.preset.arms[1:]}
    for rival in ("wider", "headwise_identity", "head_gate"):
        sides[f"headwise against {rival}"] = (("headwise", first), (rival, first))
    sides[f"headwise, {first} blocks, against plain, {first + 1}"] = ("headwise", first), (plain, first + 1)
    sides[f"plain, {first + 1} blocks, against plain, {first}"] = (plain, first + 1), (plain, first)
    there = set(study.models())
    sides = {name: both for name, both in sides.items() if set(both) <= there}
    values = {name: tuple(study.losses(*each) for each in both) for name, both in sides.items()}
    if equal := equal_time(study):
        values["headwise against plain, equal decode time"] = equal
    return ["pair", *FULL], _rows(pairs.compared(values))


def worth(study: Study):
    """How many plain blocks have the loss of so many headwise ones, and how many have their decode time."""
    columns = ["headwise blocks", "seeds", "plain blocks of that loss", "from", "to"]
    columns += ["plain blocks of that decode time"]
    depths, rows = study.depths(study.plain), []
    curve = pairs.curve(study.records, depths, study.plain) if len(depths) > 1 else None
    for depth in study.depths("headwise") if curve else []:
        losses, time = study.losses("headwise", depth), fixed(time_in_blocks(study, "headwise", depth), "–", 2)
        try:
            found = pairs.worth(curve, losses)
            row = [fmt(found.value, found.stderr), f"{found.low:.2f}", f"{found.high:.2f}"]
        except ValueError:  # more plain blocks are no better
            row = ["not determined", "–", "–"]
        rows.append([str(depth), str(len(losses)), *row, time])
    return columns, rows


def harder(study: Study):
    """Whether a width costs an arm more than it costs plain."""
    widths = sorted({bits for each in study.scored for bits in each["quantized"]}, key=int, reverse=True)
    sides = {}
    for bits in widths:
        rival = lost(study, study.plain, study.first, bits)
        for arm in study.preset.arms[1:]:
            ours = lost(study, arm, study.first, bits)
            if len(ours.keys() & rival.keys()) >= seeds.LEAST:
                sides[f"{arm}, {bits} bits"] = ours, rival
    return ["arm", *FULL], _rows(pairs.compared(sides)) if sides else []


def task_pairs(study: Study):
    """Headwise and plain on each task."""
    sides, names = {}, list(dict.fromkeys(name for each in study.scored for name in answers(each)))
    for name in names:
        rival, ours = (task_values(study, arm, name) for arm in (study.plain, "headwise"))
        if len(rival.keys() & ours.keys()) >= seeds.LEAST:  # more is better here
            sides[name] = tuple({seed: -value for seed, value in each.items()} for each in (ours, rival))
    return ["headwise against plain", "seeds", "gain", *FULL[2:]], _rows(pairs.compared(sides)) if sides else []


def _rows(found: dict[str, pairs.Pair]) -> list[list[str]]:
    def row(name: str, each: pairs.Pair) -> list[str]:
        gain: intervals.Interval = each.gain
        span = [f"{gain.low:.4f}", f"{gain.high:.4f}", f"{each.verdict.p:.2g}"]
        return [name, str(gain.n), fmt(gain.value, gain.stderr), *span, str(each)]

    return [row(name, each) for name, each in found.items()]
