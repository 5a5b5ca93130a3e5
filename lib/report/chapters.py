"""The chapters of the report: notebooks by tens, and the figures that belong to each."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lib.report import (
    ablations,
    all_methods,
    compare,
    decoding,
    evaluation,
    figures,
    healing,
    layers,
    packed,
    peers,
    phone,
    pruning,
    recipe,
    serving,
)

TITLES = {
    "0": "Start, text, tokenizers",
    "1": "Training",
    "2": "Quantization",
    "3": "Pruning, healing, distillation",
    "4": "Running",
    "5": "Measuring",
    "6": "All runs",
    "7": "Results of hours",
}


@dataclass(frozen=True)
class Chapter:
    """A chapter: its number as a file name has it ("20"; "other" for notebooks without one) and its title."""

    number: str
    title: str

    @property
    def name(self) -> str:
        """As a reader sees it: `20 Quantization`."""
        return f"{self.number} {self.title}" if self.number.isdigit() else self.title

    @property
    def file(self) -> str:
        """The page of this chapter, beside index.html."""
        return f"chapter-{self.number}.html"


def of(name: str) -> Chapter:
    """The chapter of a notebook or of a run of it, by the tens of its number."""
    found = re.match(r"(\d)\d_", name)
    if not found:
        return Chapter("other", "Other notebooks")
    return Chapter(f"{found[1]}0", TITLES.get(found[1], "More notebooks"))


@dataclass(frozen=True)
class Figure:
    """A figure of the report: the number of its chapter, what draws it from the table of results, and its caption."""

    chapter: str
    draw: Callable
    caption: str


def _variants(notebook: str) -> Callable:
    return lambda table: ablations.by_variant(table, "kl_divergence", notebook)


FIGURES = {
    "quality_by_bytes": Figure("50", figures.quality_by_bytes, "Quality against what has to be stored."),
    "quality_by_bits": Figure("50", figures.quality_by_bits, "The same against bits per weight of everything stored."),
    "kl_by_bytes": Figure(
        "50",
        lambda table: figures.quality_by_bytes(table, "kl_divergence"),
        "Distance from the original's predictions, which sees damage that perplexity hides.",
    ),
    "speed_by_bytes": Figure("50", figures.speed_by_bytes, "Speed relative to the original, timed in turns with it."),
    "memory_by_method": Figure("50", figures.memory_by_method, "Memory that running each model took at its peak."),
    "task_scores": Figure("50", evaluation.scores, "Tasks, beside chance and the best constant answer."),
    "task_differences": Figure("50", compare.forest, "Compressed versions against the original on the same samples."),
    "side_by_side": Figure(
        "50", peers.side_by_side, "Other projects' quantizers on the same model and tokens, in one run."
    ),
    "all_methods": Figure(
        "50", all_methods.by_megabytes, "Distance from the original against size: our methods and other projects'."
    ),
    "layer_error": Figure(
        "20", layers.layer_error, "Output error of each layer after quantization, relative to the output."
    ),
    "gptq_variants": Figure("20", _variants("22_gptq"), "What each ingredient of GPTQ brings at equal bits."),
    "recipe_variants": Figure(
        "20", _variants("29_best_recipe"), "Methods and the recipe at the same bits, each from the original on."
    ),
    "allocation": Figure("20", recipe.allocation, "Bits of each group of layers under a budget of bytes."),
    "layer_importance": Figure("30", pruning.importance_by_block, "How much each block matters, by two scores."),
    "quality_by_depth": Figure(
        "30", pruning.quality_by_depth, "What removing blocks costs, by the score that chose them."
    ),
    "cost_by_depth": Figure("30", pruning.cost_by_depth, "What removing blocks saves in time and memory."),
    "healing": Figure("30", healing.curves, "What training after pruning brings back of the perplexity."),
    "healing_divergence": Figure(
        "30",
        lambda table: healing.curves(table, "recovered_divergence"),
        "The same for the distance from the original's predictions.",
    ),
    "healing_tasks": Figure(
        "30", healing.answers, "What the healed models can do, between the pruned one and the original."
    ),
    "where_time_goes": Figure("40", packed.where_time_goes, "Where the time of a token goes, original against packed."),
    "decoding": Figure("40", decoding.by_kind, "Lossless decoding by kind of task, the same tokens with and without."),
    "serving_throughput": Figure("40", serving.throughput, "What a server gives all its clients together."),
    "serving_latency": Figure("40", serving.latencies, "How long clients wait under a load, and how unequally."),
    "serving_energy": Figure(
        "40", serving.energy, "Energy of a token by bits, or an estimate that says that it is one."
    ),
    "phone_scores": Figure(
        "40", phone.scores, "The Edge-Device LLM Competition's tasks for models without some of their blocks."
    ),
}
