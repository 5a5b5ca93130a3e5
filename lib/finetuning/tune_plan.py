"""What a fine-tuning will take, before any weight is read: rows, memory of each process, and commands for several GPUs.

    python -m lib.finetuning.tune_plan --gpus 8 --data mine.jsonl --way qlora --bits 4 --output checkpoints/mine

takes the options of `lib.finetuning.tune`. Of a model of the Hub configuration and tokenizer are fetched, nothing else.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from lib.finetuning import memory, tune
from lib.finetuning.tune import PLAIN, Job
from lib.folders import folder_names
from lib.sources import models, packaged


def commands(job: Job, output: Path | str, gpus: int) -> dict[str, str]:
    """Shell commands of one process, or, with a process a GPU, of whole weights in each and of weights spread over all.

    gpus: 0 for a machine without. Raises ValueError for less, and for more than rows of a step.
    """
    if not 0 <= gpus <= job.batch:
        raise ValueError(f"{gpus} GPUs for a batch of {job.batch} rows; 0 to {job.batch} are allowed; change one.")
    own = ["lib.finetuning.tune", "--output", str(output), *arguments(job)]
    if gpus < 2:
        return {"one process": shlex.join(["python", "-m", *own])}
    launch = ["accelerate", "launch", "--num_processes", str(gpus), "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no"]
    return {
        "whole weights in each process": shlex.join([*launch, "--multi_gpu", "-m", *own]),
        "weights spread over them": shlex.join([*launch, "--use_fsdp", "--fsdp_version", "2", "-m", *own]),
    }


def arguments(job: Job) -> list[str]:
    """The options of the command line that differ from the usual ones."""
    found = []
    for field in dataclasses.fields(job):
        name, value = f"--{field.name.replace('_', '-')}", getattr(job, field.name)
        if value is True:
            found.append(name)
        elif isinstance(value, tuple):
            found += [each for one in value for each in (name, one)]
        elif value != field.default:
            found += [name, str(value)]
    return found


def lines(job: Job, output: Path | str, gpus: int) -> list[str]:
    """The plan in words and numbers; nothing is trained. Raises ValueError for what does not fit together."""
    tune.check(job)
    told = commands(job, output, gpus)
    place = _place(job.model)
    config, tokenizer = AutoConfig.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    rows = tune.rows_of(job, tokenizer, "train")
    count, (whole, learned) = max(1, gpus), rows.tokens
    each = tune.at_once(job, count)
    bits = job.bits if job.bits < PLAIN else _bits(config)
    found = memory.predict(
        config, job.way, batch=each, length=job.length, bits=bits, group_size=job.group_size, rank=job.rank,
        recompute=job.recompute, passes=max(1, job.batch // (each * count)),
    )  # fmt: skip
    return [
        f"{job.way} of {job.model}, {job.steps} steps of {job.batch} rows, {each} in each pass of {count} processes",
        f"data: {len(rows)} rows, {whole:,} tokens, {learned:,} of them answers; "
        f"each is seen {job.steps * job.batch / len(rows):.2g} times",
        f"memory: {found.total / 1e9:.3g} GB in each process with whole weights ({found.weights / 1e9:.3g} weights, "
        f"{(found.gradients + found.optimizer + found.undo) / 1e9:.3g} gradients and optimizer, "
        f"{found.activations / 1e9:.3g} activations)",
        "commands:",
        *(f"  {said}: {command}" for said, command in told.items()),
    ]


def _place(name: str) -> str:
    """Where a configuration is read: a folder of this machine, or the Hub's name."""
    local = name in packaged.MODELS or folder_names.find(name)
    return str(models.find(name)[0]) if local else name


def _bits(config) -> int | None:
    """Bits of the codes of a checkpoint that is quantized already."""
    stated = getattr(config, "quantization_config", None) or {}
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    groups = list((stated.get("config_groups") or {}).values())
    return groups[0]["weights"]["num_bits"] if groups else None


def main(given: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = tune.parser()
    parser.prog, parser.description = "python -m lib.finetuning.tune_plan", "What a fine-tuning will take."
    parser.add_argument("--gpus", type=int, default=1, help="of this machine (default 1)")
    options = parser.parse_args(given)
    try:
        print("\n".join(lines(*tune.asked(options), options.gpus)))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
