"""Healing: trains a pruned model to make up for its missing blocks.

`WAYS` names the methods of the literature. They differ in the target (the next token, or the unpruned model's
predictions) and in the trained weights (all behind the first removed block, adapters on them, or head and last blocks).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lib import files
from lib.models import blocks
from lib.trainers import adapters, distill, loop, next_token, training_data

BATCH = 4  # windows of a step


@dataclass(frozen=True)
class Way:
    """A healing method: whether it distils from a teacher, which weights it trains, and its peak learning rate."""

    teacher: bool
    trained: Callable
    learning_rate: float


WAYS = {
    "head": Way(False, adapters.head_and_last_, 3e-4),
    "lora": Way(False, adapters.lora_, 1e-3),
    "full": Way(False, adapters.full_, 3e-4),
    "distill": Way(True, adapters.full_, 3e-4),
    "distill_lora": Way(True, adapters.lora_, 1e-3),
}


def check(way: str) -> Way:
    """The way called `way`; ValueError for another name."""
    if way not in WAYS:
        raise ValueError(f"healing by {way!r} is unknown; {files.choices(way, WAYS)}")
    return WAYS[way]


def heal_(
    model: nn.Module,
    windows,
    *,
    way: str = "distill",
    teacher: nn.Module | None = None,
    first: int = 0,
    loss: Callable | None = None,
    learning_rate: float | None = None,
    batch: int | None = None,
    **options,
) -> loop.History:
    """Heal the pruned `model` in place on `windows` of text, or other data of `loop.train_`; returns losses and times.

    way: one of `WAYS`. teacher: the unpruned model, for ways that distil. first: the first block to train, best
    `min(removed)`: the blocks before it are unchanged, and a distillation runs them once for both models. Where the
    last blocks were removed nothing is left behind them, and the last one left is trained.
    loss: replaces the way's own, for example by stored predictions of the teacher (`top_k.TopKDistillation`).
    batch: windows of a step; None takes 4, or fewer where `tokens` would then make less than 8 steps. Further
    options, `tokens` or `steps` among them, are `loop.train_`'s. Raises ValueError as that does, for fewer windows
    than a batch among others, and for a distillation without teacher.
    """
    chosen = check(way)
    if chosen.teacher and teacher is None and loss is None:
        raise ValueError(f"way={way!r} without a teacher; the unpruned model is needed; give teacher=, or another way.")
    source = training_data.of(windows, model)
    known = options.get("tokens") and source.length
    eighth = int(options["tokens"] // (8 * source.length)) if known else BATCH
    options["batch"] = min(BATCH, max(1, eighth)) if batch is None else batch
    options.setdefault("micro_batch", 2 if options["batch"] % 2 == 0 else 1)
    loss = loss or (distill.Distillation(teacher) if chosen.teacher else next_token.loss)
    count = len(blocks.blocks(model))
    place = {} if chosen.trained is adapters.head_and_last_ else {"first": count - 1 if first == count else first}
    if chosen.trained is adapters.lora_:
        place["seed"] = options.get("seed", 0)
    with chosen.trained(model, **place), adapters.noted(model, way=way):
        return loop.train_(model, source, loss, learning_rate=learning_rate or chosen.learning_rate, **options)
