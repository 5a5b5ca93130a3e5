"""Sizes of the study of orders: what a minute, an evening and a GPU can do."""

from dataclasses import dataclass

from lib import files


@dataclass(frozen=True)
class Preset:
    """One size of study.

    data: conversations, as `conversations.read` knows them. length: tokens of a row at most. batch: rows of a step.
    minutes: of each training, of processor time. rates: factors of each way's usual learning rate that are tried. bits
    and group_size: of the compressed models. rank: of adapters. calibration: rows of the training data for GPTQ.
    unseen, tried: rows that are measured in the end, and by which a rate is chosen. text: plain text on which
    forgetting is measured, in so many windows of 512 tokens. seeds: of each arm. tasks: (name, questions) of those that
    every model answers; `tasks.load` knows them.
    """

    model: str
    data: str
    length: int
    batch: int
    minutes: float
    rates: tuple[float, ...]
    bits: tuple[int, ...]
    group_size: int
    rank: int
    calibration: int
    unseen: int
    tried: int
    text: str
    windows: int
    seeds: tuple[int, ...]
    tasks: tuple[tuple[str, int], ...] = ()


_MODEL = "smollm2-135m-instruct"
PRESETS = {
    "quick": Preset(
        _MODEL, "packaged", 192, 2, 0.1, (1.0,), (4,), 64, 8, 8, 8, 4, "packaged", 1, (0, 1, 2),
        (("packaged_facts", 20),),
    ),
    "evening": Preset(
        _MODEL, "alpaca/alpaca_4000.jsonl", 256, 4, 0.3, (1.0, 4.0), (4, 2), 64, 16, 8, 24, 8, "wikitext2", 1,
        (0, 1, 2, 3, 4), (("arc_easy", 60),),
    ),
    "cpu": Preset(
        _MODEL, "alpaca/alpaca_4000.jsonl", 512, 8, 3.0, (0.3, 1.0, 3.0), (4, 2), 64, 16, 64, 200, 50, "wikitext2", 16,
        (0, 1, 2, 3, 4), (("arc_easy", 200),),
    ),
    "gpu": Preset(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", "alpaca/alpaca_4000.jsonl", 512, 16, 20.0, (0.3, 1.0, 3.0), (4, 2), 64,
        16, 128, 400, 100, "wikitext2", 64, (0, 1, 2, 3, 4), (("arc_easy", 1000), ("hellaswag", 1000)),
    ),
}  # fmt: skip


def by_name(name: str) -> Preset:
    """The preset `name`; ValueError with the choices for others."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; {files.choices(str(name), PRESETS)}")
    return PRESETS[name]
