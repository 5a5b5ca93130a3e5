"""One model learns preferences: by all its weights, by adapters, or, quantized, by scales or adapters on its codes.

    python -m lib.alignment.tune quick --loss ipo --output checkpoints/mine
    python -m lib.alignment.tune cpu --loss dpo --way scales --bits 2 --pairs mine.jsonl --output checkpoints/mine
    accelerate launch --num_processes 8 -m lib.alignment.tune gpu --loss dpo --output checkpoints/mine

The model that comes out is one as any other: adapters are merged. Where scales learned, codes are the ones that it had
and no byte is added; adapters of a quantized model stay beside its codes in 8 bits (`qlora`), or go through GPTQ with
them again (`qlora-back`). A training that was killed goes on in its folder, and on a CPU ends in the same bytes.
"""

import argparse
import contextlib
import dataclasses
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lib import files
from lib.alignment import presets
from lib.alignment.presets import BACK, PLAIN, QUANTIZED, SCALES, Arm, Preset
from lib.distillation import quantization_aware
from lib.finetuning import merging, ways
from lib.finetuning.tune import save as save_whole
from lib.quantizers import gptq
from lib.sources import models, preference_data, texts
from lib.sources.conversations import Conversation
from lib.trainers import adapters, loop, preference_rows, preference_training, preferences, processes, reward_model
from lib.trainers.history import History
from lib.trainers.preference_rows import PreferenceRows


@dataclass(frozen=True)
class Data:
    """Pairs that fit whole: to learn from, to choose a learning rate by, and to judge by."""

    train: tuple[Conversation, ...]
    trial: tuple[Conversation, ...]
    held_out: tuple[Conversation, ...]


def data(preset: Preset, tokenizer) -> Data:
    """The pairs of a preset, in an order drawn once; ValueError for too few that fit its length."""
    found = preference_data.load(preset.pairs, broken="skip")
    rows = preference_rows.pairs(found, tokenizer, length=preset.length)
    whole = {where for where, row in zip(rows.where, rows) if all(row["bytes"])}
    kept = [each for each in found if each.where in whole]
    needed = preset.train + preset.trial + preset.held_out
    if len(kept) < needed:
        raise ValueError(
            f"{len(kept)} of {len(found)} pairs of {preset.pairs!r} fit {preset.length} tokens, and {needed} are "
            "needed; allow longer ones, or take fewer."
        )
    random.Random(0).shuffle(kept)
    ends = [preset.train, preset.train + preset.trial, needed]
    return Data(*(tuple(kept[a:b]) for a, b in zip([0, *ends], ends)))


def model_of(preset: Preset, bits: int, folder: Path | str | None = None) -> tuple[nn.Module, object]:
    """(Model, tokenizer) of a preset, quantized by GPTQ where it has fewer than 16 bits.

    folder: keeps finished blocks, so that a killed quantization goes on.
    """
    model, tokenizer = models.load(preset.model)
    if bits < PLAIN:
        state = None if folder is None or processes.launched() > 1 else Path(folder)
        gptq.quantize_(model, calibration(preset), bits=bits, group_size=preset.group_size, state=state)
    return model, tokenizer


def calibration(preset: Preset) -> texts.Windows:
    """The text that GPTQ looks at."""
    return texts.load(preset.text, "valid").windows(preset.calibration, preset.plain)


def rows_of(loss: str, conversations: Sequence[Conversation], tokenizer, length: int) -> PreferenceRows:
    """The rows that a loss learns from: pairs, or their answers one by one."""
    if preferences.by_name(loss).pairs:
        return preference_rows.pairs(conversations, tokenizer, length=length)
    return preference_rows.singles(preference_rows.split(conversations), tokenizer, length=length)


def train_(
    model: nn.Module,
    arm: Arm,
    rows: PreferenceRows,
    preset: Preset,
    *,
    rate: float,
    seed: int = 0,
    folder: Path | str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> History:
    """Train `model` in place as an arm of a preset on rows that have their reference, where the loss needs one.

    rate: the peak learning rate. folder: keeps checkpoints; a killed training resumes there. Errors are `loop.train_`'s
    and `quantization_aware.train_`'s.
    """
    loss = preference_training.Loss(arm.loss, preset.options_of(arm.loss))
    options = {"steps": preset.steps, "batch": preset.batch, "micro_batch": at_once(preset), "learning_rate": rate}
    options |= {"seed": seed, "folder": folder, "collate": preference_rows.collate, "on_step": on_step}
    return learn_(model, arm.way, rows, loss, preset, **options)


def learn_(model: nn.Module, way: str, rows, loss: Callable, preset: Preset, **options) -> History:
    """Train the weights of `way` by any loss; at the end `model` has what they learned. options: `loop.train_`'s."""
    if way == SCALES:
        return quantization_aware.train_(model, rows, loss, **options).history
    with _chosen_(model, way, preset, options["seed"]):
        return loop.train_(model, rows, loss, **options)


@contextlib.contextmanager
def _chosen_(model: nn.Module, way: str, preset: Preset, seed: int) -> Iterator[None]:
    if way not in QUANTIZED:
        with adapters.WAYS[way](model):
            yield
        return
    with ways.trained_(model, "qlora", seed=seed) as found:
        yield
    if way == BACK:
        merging.into_low_bits_(model, found, calibration(preset))
    else:
        merging.beside_(model, found)


def at_once(preset: Preset) -> int:
    """Rows of a forward pass, so that all processes that were started together have some of a step's."""
    return max(1, min(preset.micro_batch, preset.batch // processes.launched()))


def judge(preset: Preset, pairs: Sequence[Conversation], folder: Path | str | None = None) -> tuple[nn.Module, object]:
    """A reward model that learned the order of `pairs`, with its tokenizer."""
    model, tokenizer = models.load(preset.model)
    reward_model.headed_(model)
    rows = preference_rows.pairs(pairs, tokenizer, length=preset.length)
    options = {"steps": preset.judge, "batch": preset.batch, "micro_batch": at_once(preset), "folder": folder}
    options |= {"learning_rate": preset.judge_rate, "collate": preference_rows.collate}
    with adapters.full_(model), reward_model.trained_(model):
        loop.train_(model, rows, reward_model.Loss(), **options)
    return model, tokenizer


def save(model: nn.Module, tokenizer, folder: Path | str) -> None:
    """Write the model, in the form that it has; of several processes the first one does."""
    if processes.leads():
        save_whole(model, tokenizer, folder)


def run(arm: Arm, preset: Preset, output: Path | str, *, seed: int = 0, rate: float | None = None) -> History:
    """Load, train and save one model; checkpoints lie beside `output`. rate: None takes the preset's first."""
    output = Path(output)
    state = output.with_name(f"{output.name}.training")
    files.check_writable(output)
    model, tokenizer = model_of(preset, arm.bits, state / "quantized")
    rows = rows_of(arm.loss, data(preset, tokenizer).train, tokenizer, preset.length)
    if preferences.by_name(arm.loss).reference:
        rows = rows.towards(model, state / "reference")
    history = train_(model, arm, rows, preset, rate=rate or preset.rates[arm.way][0], seed=seed, folder=state / "steps")
    save(model, tokenizer, output)
    return history


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.alignment.tune", description="Teach a model preferences.")
    parser.add_argument("preset", help=f"sizes: one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--output", required=True, type=Path, help="the folder of the model that comes out")
    parser.add_argument("--loss", default="dpo", help=f"one of {', '.join(preferences.PREFERENCES)}")
    parser.add_argument("--way", default="full", help=f"which weights learn: one of {', '.join(presets.WAYS)}")
    parser.add_argument("--bits", type=int, default=PLAIN, help="of the model; below 16 it is quantized first")
    parser.add_argument("--model", help="another model than the preset's")
    parser.add_argument("--pairs", help="other pairs than the preset's: a name, a file, or OWNER/NAME")
    parser.add_argument("--steps", type=int, help="another number of steps")
    parser.add_argument("--rate", type=float, help="another learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the pairs")
    given = parser.parse_args(arguments)
    try:
        named = {name: value for name in ("model", "pairs", "steps") if (value := getattr(given, name)) is not None}
        preset = dataclasses.replace(presets.by_name(given.preset), **named)
        arm = Arm(given.loss, given.way, given.bits)
        if given.rate is None and arm.way not in preset.rates:
            raise ValueError(f"preset {given.preset!r} has no learning rate for {arm.way!r}; give one as --rate.")
        history = run(arm, preset, given.output, seed=given.seed, rate=given.rate)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if processes.leads():
        print(f"{history}: {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
