"""One model learns conversations by any of the ways, is merged, judged on unseen answers, and saved.

    python -m lib.finetuning.tune --data mine.jsonl --way scales --bits 4 --output checkpoints/mine
    python -m lib.finetuning.tune --data mine.jsonl --way qlora --bits 2 --merge back --output checkpoints/mine
    accelerate launch --num_processes 8 -m lib.finetuning.tune --data mine.jsonl --output checkpoints/mine

`lib.finetuning.tune_plan` says before what it takes, and gives the commands for several GPUs. A training that was
killed goes on in its folder beside the output, and on a CPU ends in the same bytes.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lib import files, folders, tasks
from lib.export import compressed_tensors, plain
from lib.finetuning import adapter_folder, answer_loss, loftq, low_rank_folder, merging, overlap, packing, ways
from lib.models import blocks
from lib.quantized import low_rank_linear
from lib.quantizers import gptq
from lib.sources import conversations, models, packaged
from lib.trainers import answer_rows, loop, low_rank, next_token, processes
from lib.trainers.history import History

PLAIN = 16  # bits of a model that is not quantized here
ADAPTERS = (*low_rank.KINDS, "qlora")  # ways whose adapters have to be merged
MERGES = {
    "16": "into 16 bits",
    "back": "into low bits again, by GPTQ",
    "beside": "beside the codes, in 8 bits",
    "apart": "nowhere: the adapter alone is saved, in peft's form",
}


@dataclass(frozen=True)
class Job:
    """What is trained and how; every field is an option of the command line, described in `OPTIONS`."""

    model: str = packaged.NAME
    data: str = "packaged"
    way: str = "lora"
    bits: int = PLAIN
    merge: str | None = None
    group_size: int = 64
    calibration: int = 32
    rank: int = low_rank.RANK
    length: int = 512
    batch: int = 8
    micro_batch: int = 4
    steps: int = 100
    rate: float | None = None
    seed: int = 0
    unseen: int = 32
    without: tuple[str, ...] = ()
    packed: bool = False
    recompute: bool = False
    loftq: bool = False


OPTIONS = {
    "model": "a packaged model, a folder, or OWNER/NAME of the Hub",
    "data": "conversations: packaged, a file or folder, or OWNER/NAME",
    "way": f"which weights learn: one of {', '.join(ways.WAYS)}",
    "bits": "quantize the model to so many by GPTQ first; 16 leaves it as it is",
    "merge": "where adapters go: " + "; ".join(f"{name}: {said}" for name, said in MERGES.items()),
    "group_size": "columns of a weight that share a scale",
    "calibration": "rows of the training data that GPTQ looks at",
    "rank": "of the adapters",
    "length": "tokens of a row at most",
    "batch": "rows of a step",
    "micro_batch": "rows of a forward pass at most",
    "steps": "of the training",
    "rate": "peak learning rate; else the way's usual one",
    "seed": "of the order of the rows, and of the adapters",
    "unseen": "conversations of the test split that say what was learned",
    "without": "a task whose samples must not be learned; may be given several times",
    "packed": "several conversations in a row, none of which sees another",
    "recompute": "run each block again in the backward pass instead of keeping what it computed",
    "loftq": "begin the adapters with the error of the quantization",
}


def run(job: Job, output: Path | str) -> History:
    """Load, quantize if asked, train, merge and save one model; checkpoints lie beside `output`.

    Prints the bits per byte of unseen answers before and after. Raises ValueError, before the work, for what does not
    fit together, and what reading, training and saving raise.
    """
    output = Path(output).expanduser()
    state = output.with_name(f"{output.name}.training")
    check(job)
    folders.check(output)
    model, tokenizer = models.load(job.model)
    check(job, model)
    folders.check(output, plain.size(model) + plain.ROOM)
    rows, unseen = rows_of(job, tokenizer, "train"), rows_of(job, tokenizer, "test")
    calibration = packing.windows(rows, job.calibration, job.length)
    start = _quantized_(model, job, calibration, state / "quantized")
    rate = ways.learning_rate(model, job.way) if job.rate is None else job.rate
    data = packing.packed(rows, model, length=job.length) if job.packed else rows
    before = answer_loss.measure(model, unseen, tokenizer).per_byte
    options = {"rank": job.rank, "seed": job.seed, "start": start} if job.way in ADAPTERS else {}
    with ways.trained_(model, job.way, recompute=job.recompute, **options) as adapters:
        history = loop.train_(
            model, data, next_token.loss, steps=job.steps, learning_rate=rate, batch=job.batch,
            micro_batch=at_once(job, processes.launched()), seed=job.seed, folder=state / "steps",
        )  # fmt: skip
    save = _merged_(model, tokenizer, adapters, job, calibration)
    if processes.leads():
        if job.merge != "apart":
            after = answer_loss.measure(model, unseen, tokenizer).per_byte
            print(f"{len(unseen)} unseen answers: {before.value:.4f} bits a byte before, {after.value:.4f} after")
        save(output)
    return history


def rows_of(job: Job, tokenizer, split: str) -> answer_rows.AnswerRows:
    """The rows of a split of the data: without what a task would ask, and of the test split `unseen` at most."""
    found = conversations.read(job.data, split=split, broken="skip")
    if split == "train" and job.without:
        found = overlap.without(found, [tasks.load(name) for name in job.without])
    return answer_rows.rows(found if split == "train" else found[: job.unseen], tokenizer, length=job.length)


def at_once(job: Job, count: int) -> int:
    """Rows of a forward pass, so that all of `count` processes have some of a step's."""
    return max(1, min(job.micro_batch, job.batch // count))


def check(job: Job, model: nn.Module | None = None) -> None:
    """Raise ValueError for settings that do not fit together, or, once it is there, do not fit `model`."""
    if job.way not in ways.WAYS:
        raise ValueError(f"way={job.way!r} to fine-tune is unknown; {files.choices(job.way, ways.WAYS)}")
    if not (2 <= job.bits <= 8 or job.bits == PLAIN) or min(job.unseen, job.calibration) < 1:
        raise ValueError(
            f"bits={job.bits}, unseen={job.unseen}, calibration={job.calibration}; 2 to 8 bits, or {PLAIN} for a model "
            "that stays as it is, and 1 and more of the others are allowed."
        )
    if job.merge is not None and (job.merge not in MERGES or job.way not in ADAPTERS):
        raise ValueError(
            f"merge={job.merge!r} of way={job.way!r}; {', '.join(MERGES)} are allowed, of {', '.join(ADAPTERS)}: what "
            "other ways learn is in the model at once; leave it out."
        )
    if model is None:
        return
    there = any(blocks.is_quantized(layer) for layer in blocks.linears(blocks.blocks(model)).values())
    if there and (job.bits < PLAIN or job.loftq):
        raise ValueError(f"{job.model} is quantized already, and its error is not known; leave bits and loftq out.")
    quantized, allowed = there or job.bits < PLAIN, ways.WAYS[job.way].quantized
    if allowed not in (None, quantized) or (not quantized and (job.loftq or job.merge in ("back", "beside"))):
        raise ValueError(
            f"way={job.way!r}, merge={job.merge!r}, loftq={job.loftq} of a model with{'' if quantized else 'out'} "
            "quantized layers; lora and full are for models without, qlora, scales, loftq, back and beside for models "
            "with; give bits=4, or take another way."
        )


def _quantized_(model: nn.Module, job: Job, calibration, state: Path) -> dict | None:
    """Quantize `model` where the job says so; returns what LoftQ's adapters begin with."""
    if job.bits == PLAIN:
        return None
    originals = loftq.weights(model) if job.loftq else {}
    alone = processes.launched() == 1
    gptq.quantize_(model, calibration, bits=job.bits, group_size=job.group_size, state=state if alone else None)
    return loftq.start(model, originals, rank=job.rank, seed=job.seed) if job.loftq else None


def _merged_(model: nn.Module, tokenizer, adapters, job: Job, calibration) -> Callable[[Path], object]:
    """Put the adapters where the job wants them; returns what saves the result in a folder."""
    quantized = any(blocks.is_quantized(layer) for layer in blocks.linears(blocks.blocks(model)).values())
    merge = job.merge or ("beside" if quantized else "16")
    if adapters is not None and merge == "apart":
        return lambda folder: adapter_folder.save(adapters, folder)
    if adapters is not None:
        {
            "16": lambda: merging.into_16_bits_(model, adapters),
            "back": lambda: merging.into_low_bits_(model, adapters, calibration),
            "beside": lambda: merging.beside_(model, adapters),
        }[merge]()
    return lambda folder: save(model, tokenizer, folder)


def save(model: nn.Module, tokenizer, folder: Path | str) -> None:
    """Write a model in the form that it has: with a low-rank part, quantized, or plain."""
    layers = blocks.linears(blocks.blocks(model)).values()
    if low_rank_linear.layers(model):
        low_rank_folder.save(model, tokenizer, folder)
    else:
        (compressed_tensors if any(map(blocks.is_quantized, layers)) else plain).save(model, tokenizer, folder)


def parser() -> argparse.ArgumentParser:
    """Of the command line: an option for every field of `Job`."""
    made = argparse.ArgumentParser(prog="python -m lib.finetuning.tune", description="Teach a model conversations.")
    made.add_argument("--output", required=True, type=Path, help="the folder of the model that comes out")
    kinds = {"bits": int, "rate": float}
    for field in dataclasses.fields(Job):
        name, said = f"--{field.name.replace('_', '-')}", OPTIONS[field.name]
        if field.default is False:
            made.add_argument(name, action="store_true", help=said)
        elif field.default == ():
            made.add_argument(name, action="append", default=[], help=said)
        else:
            kind = kinds.get(field.name, type(field.default) if field.default is not None else str)
            made.add_argument(name, type=kind, default=field.default, help=said)
    return made


def asked(options: argparse.Namespace) -> tuple[Job, Path]:
    """The job and the output that options of `parser` mean."""
    names = [field.name for field in dataclasses.fields(Job)]
    job = Job(**{name: getattr(options, name) for name in names})
    return dataclasses.replace(job, without=tuple(job.without)), options.output


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    job, output = asked(parser().parse_args(arguments))
    try:
        history = run(job, output)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if processes.leads():
        print(f"{history}: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
