"""What a study of architectures will take, before anything is downloaded or trained.

    python -m lib.trainers.study_plan gpu --gpus 4

prints its trainings, the weights and operations of each model, what it reads and leaves on the disk, and the commands
that run it, one process a GPU.
"""

import argparse
import shlex
import sys
from collections import Counter
from dataclasses import dataclass

from lib import architectures
from lib.metrics import count
from lib.sources import hub_head
from lib.trainers import architecture_study, from_scratch, presets

PACKAGED = 49152  # tokens of the packaged model's tokenizer
_USED = 1e14  # operations a second that are reckoned with: a quarter to a half of what one large GPU has in bfloat16


@dataclass(frozen=True)
class Model:
    """A model of a study. trainings: how often it is trained, with other rates and seeds; flops: of one of them."""

    arm: str
    blocks: int
    weights: int
    trainings: int
    flops: float


@dataclass(frozen=True)
class Plan:
    """steps: of each training. text, tokens, models: bytes on the disk of text, of its tokens, and of what is trained.
    training: bytes of memory for weights, gradients and AdamW's two moments of the largest model, without activations.
    """

    preset: str
    steps: int
    models: list[Model]
    text_bytes: int
    token_bytes: int
    study_bytes: int
    training_bytes: int

    @property
    def flops(self) -> float:
        """Operations of the whole study."""
        return sum(each.trainings * each.flops for each in self.models)


def of(name: str) -> Plan:
    """The plan of the preset `name`; nothing is read, and no weight gets memory. ValueError for an unknown name."""
    preset = presets.by_name(name)
    vocabulary = preset.vocabulary or PACKAGED
    chosen = dict.fromkeys(preset.arms, preset.rates[0])  # whichever is best: the numbers are the same
    runs = {*architecture_study.rates(preset), *architecture_study.trainings(preset, chosen)}
    steps = max(1, preset.tokens // (preset.batch * preset.length))
    tokens, found = steps * preset.batch * preset.length, []
    for (arm, blocks), often in sorted(Counter((run.arm, run.blocks) for run in runs).items()):
        sizes = preset.sizes | {"vocab_size": vocabulary, "num_hidden_layers": blocks}
        model = architectures.controls.shape(architectures.by_name(arm), architectures.configuration(arm, sizes))
        operations = 3 * count.flops_per_token(model, preset.length // 2) * tokens
        found.append(Model(arm, blocks, count.parameters(model), often, operations))
    read = from_scratch.characters(preset)
    return Plan(
        name, steps, found,
        text_bytes=sum(int(hub_head.BYTES * each) for each in read.values()), token_bytes=4 * preset.tokens,
        study_bytes=architecture_study.disk_bytes(preset, vocabulary),
        training_bytes=16 * max(each.weights for each in found),
    )  # fmt: skip


def commands(name: str, gpus: int) -> list[str]:
    """Shell commands of the study: its trainings, on each GPU a process that takes what no other has, scores, times.

    gpus: 0 for a machine without. Raises ValueError for less.
    """
    if gpus < 0:
        raise ValueError(f"gpus={gpus}; 0 and more are allowed; 0 trains on the CPU.")
    study = f"python -m lib.trainers.architecture_study {shlex.quote(name)}"
    trainings = [f"CUDA_VISIBLE_DEVICES={each} {study} &" for each in range(gpus)] if gpus > 1 else [study]
    then = [f"python -m lib.evaluation.architecture_scores {shlex.quote(name)}{more}" for more in ("", " --speed")]
    then.append(f"python -m lib.report.study_tables {shlex.quote(name)}")
    return [*trainings, *(["wait"] if gpus > 1 else []), *then]


def lines(plan: Plan, gpus: int) -> list[str]:
    """The plan in words and numbers."""
    preset, many = presets.by_name(plan.preset), max(1, gpus)
    size, trainings = preset.batch * preset.length, sum(each.trainings for each in plan.models)
    told = [f"{plan.preset}: {trainings} trainings of {plan.steps:,} steps of {size:,} tokens of {preset.text}"]
    for each in plan.models:
        much = f"{each.weights / 1e6:.2f} M weights, {each.flops:.3g} FLOP a training"
        told.append(f"  {each.arm}, {each.blocks} blocks: {each.trainings} x {much}")
    text, tokens, study, memory = (
        f"{each / 1e9:.3g} GB" for each in (plan.text_bytes, plan.token_bytes, plan.study_bytes, plan.training_bytes)
    )
    told.append(f"disk: {text} of text if the Hub streams it, {tokens} of tokens, {study} of models and records")
    rows = f"{preset.micro_batch} rows of {preset.length} tokens"
    told.append(f"memory: {memory} for weights, gradients and AdamW, and the activations of {rows}")
    hours = plan.flops / _USED / 3600 / many
    told.append(f"all trainings: {plan.flops:.3g} FLOP, {hours:.3g} hours at {_USED:.0e} FLOP/s on each of {many}")
    return [*told, "commands:", *(f"  {each}" for each in commands(plan.preset, gpus))]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.trainers.study_plan", description="What a study will take.")
    parser.add_argument("preset", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--gpus", type=int, default=1, help="of this machine (default 1)")
    given = parser.parse_args(arguments)
    try:
        print("\n".join(lines(of(given.preset), given.gpus)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
