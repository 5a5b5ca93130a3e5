"""Sizes of studies from scratch, one table: what a notebook, a night on two cores, and a GPU can train."""

from dataclasses import dataclass, field

from lib import files
from lib.trainers.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """One size of study.

    text: name of the training text, as `texts.load` knows it. vocabulary: tokens of a tokenizer trained on it; None
    takes the packaged model's. sizes: Llama's (`architectures.build`), without the vocabulary. length: tokens of a row;
    batch and micro_batch: rows of a step and of a forward pass. tokens: of a whole training. rates: the learning rates
    that every arm is tried with at its smallest width. unseen: rows kept out for the loss on unseen text, measured
    every `every` tokens. arms: rows of `architectures.ARCHITECTURES`, plain first. blocks: numbers of blocks, of which
    all arms have the first, and those of `curves` all. seeds: of each arm.
    """

    text: str
    vocabulary: int | None
    sizes: dict
    length: int
    batch: int
    micro_batch: int
    tokens: int
    rates: tuple[float, ...]
    arms: tuple[str, ...]
    blocks: tuple[int, ...]
    seeds: tuple[int, ...]
    curves: tuple[str, ...] = ("plain", "headwise")
    unseen: int = 64
    every: int = 200_000
    recipe: Recipe = field(default_factory=Recipe)


_SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
_ARMS = ("plain", "headwise", "headwise_identity", "headwise_residual", "wider", "head_gate", "talking_heads",
         "nonlinear_query")  # fmt: skip

PRESETS = {
    # two models of 1 M weights that visibly learn
    "quick": Preset(
        "packaged", 2048, {"hidden_size": 128, "intermediate_size": 344, "max_position_embeddings": 256, **_SMALL},
        128, 4, 4, 60_000, (8e-3,), ("plain", "headwise"), (4,), (0,), unseen=32, every=10_240,
        recipe=Recipe(optimizer="muon"),
    ),
    # the study in an hour and a half of one core: less than a minute a model
    "evening": Preset(
        "novels_en", 2048, {"hidden_size": 128, "intermediate_size": 344, "max_position_embeddings": 256, **_SMALL},
        128, 8, 8, 240_000, (2e-3, 4e-3, 8e-3), _ARMS, (4, 3, 5, 6), (0, 1, 2, 3, 4), unseen=192, every=119_808,
        recipe=Recipe(bfloat16=True),
    ),
    # the study: 94 trainings took three hours of one core with other work on it, one to three minutes a model
    # (compiled, a step took 0.68 and 0.88 of the time in two rounds in turns, one thread at a load of five; the first
    # compilation took 106 s, of which the training process itself computed 13 s, a second one in the same process 2 s)
    "cpu": Preset(
        "novels_en", 4096, {"hidden_size": 192, "intermediate_size": 512, "max_position_embeddings": 512, **_SMALL},
        256, 8, 8, 499_712, (1e-3, 2e-3, 4e-3, 8e-3), _ARMS, (5, 6, 7, 8), (0, 1, 2, 3, 4), unseen=96, every=124_928,
        recipe=Recipe(bfloat16=True),
    ),
    # 100 M weights and 2.5 B tokens, as the study that asked the question
    "gpu": Preset(
        "cerebras/SlimPajama-627B", None,
        {"hidden_size": 768, "intermediate_size": 2560, "max_position_embeddings": 2048, "num_attention_heads": 12,
         "num_key_value_heads": 4, "tie_word_embeddings": True},
        1024, 256, 32, 2_500_000_000, (6e-4, 1e-3, 2e-3), _ARMS, (5, 6, 7, 8), (0, 1, 2, 3, 4), unseen=1024,
        every=50_000_000, recipe=Recipe(bfloat16=True, compile=True, warmup=0.02),
    ),
}  # fmt: skip


def by_name(name: str) -> Preset:
    """The preset `name`; ValueError with the choices for others."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; {files.choices(name, PRESETS)}")
    return PRESETS[name]
