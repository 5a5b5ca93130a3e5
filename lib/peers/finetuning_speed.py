"""A step of fine-tuning by this loop beside TRL's `SFTTrainer`: tokens a second in turns, and peak memory.

    python -m lib.peers.finetuning_speed --model smollm2-135m-instruct --rounds 3 --publish

All take the same steps: LoRA of one rank on every linear layer of the blocks, the same random tokens, batch and length,
AdamW, clipping at 1, weights in bfloat16, with or without gradient checkpointing. TRL computes the loss in pieces too,
and the entropy and accuracy that it logs. Each arm of each round runs in a process of its own, which says the seconds
of its steps, of the clock and of processor time (which others on the machine change little), and how much memory it
took beside what it began with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from lib import files, machine, published, timing
from lib.finetuning import ways
from lib.metrics import memory
from lib.peers.training_speed import Clock, apart, in_turns, table
from lib.quantizers import rtn
from lib.sources import models
from lib.trainers import loop, next_token

ROWS = 64  # of random tokens, drawn by seed 0
ARMS = ("ours, LoRA", "ours, QLoRA", "TRL, LoRA")
NAME = "finetuning_speed"  # of the published file


@dataclass(frozen=True)
class Setting:
    """What all train. bits: of QLoRA's model. recompute: gradient checkpointing."""

    model: str = "smollm2-135m-instruct"
    dtype: str = "bfloat16"
    batch: int = 4
    length: int = 512
    rank: int = 16
    bits: int = 4
    steps: int = 4
    recompute: bool = False

    def rows(self, vocabulary: int) -> torch.Tensor:
        """Random token ids [rows, length]."""
        return torch.randint(vocabulary, (ROWS, self.length), generator=torch.Generator().manual_seed(0))


class Steps(Clock):
    """Reads the clock, and the processor time, after each step."""

    def __init__(self):
        super().__init__()
        self.worked = []

    def on_step_end(self, *args, **kwargs):
        """Note both."""
        super().on_step_end(*args, **kwargs)
        self.worked.append(timing.worked())


def ours(given: Setting, way: str = "lora") -> Steps:
    """The steps of this repository's loop."""
    model, steps = _model(given), Steps()
    if way == "qlora":
        rtn.quantize_(model, bits=given.bits, group_size=64)
    rows = given.rows(model.get_input_embeddings().num_embeddings)
    with ways.trained_(model, way, rank=given.rank, recompute=given.recompute):
        loop.train_(
            model, rows, next_token.loss, steps=given.steps, learning_rate=5e-4, batch=given.batch,
            micro_batch=given.batch, on_step=steps.on_step_end,
        )  # fmt: skip
    return steps


def trl(given: Setting) -> Steps:
    """The steps of TRL's `SFTTrainer`."""
    from datasets import Dataset  # loads slowly, only for this arm
    from peft import LoraConfig  # as above
    from trl import SFTConfig, SFTTrainer  # as above

    model, steps = _model(given), Steps()
    ids = given.rows(model.get_input_embeddings().num_embeddings).tolist()
    adapter = LoraConfig(r=given.rank, lora_alpha=2 * given.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_steps=given.steps, per_device_train_batch_size=given.batch, learning_rate=5e-4,
            max_length=given.length, bf16=given.dtype == "bfloat16", gradient_checkpointing=given.recompute,
            adam_beta2=0.95, max_grad_norm=1.0, lr_scheduler_type="cosine", logging_steps=1, save_strategy="no",
            report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        data = Dataset.from_dict({"input_ids": ids, "labels": ids})
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=data, peft_config=adapter, processing_class=model.tokenizer,
            callbacks=[steps],
        )  # fmt: skip
        trainer.train()
    return steps


def _model(given: Setting):
    model, _ = models.load(given.model, dtype=given.dtype)
    return model


def arm(name: str, given: Setting) -> dict:
    """{"seconds", "worked" of each step but the first, "peak" bytes more than before, model included} of one arm."""
    run = {"ours, LoRA": ours, "ours, QLoRA": lambda each: ours(each, "qlora"), "TRL, LoRA": trl}[name]
    steps, used = memory.call(run, given)
    return {"seconds": apart(steps.times), "worked": apart(steps.worked), "peak": used.increase.value}


def in_process(name: str, given: Setting) -> dict:
    """What `arm` says, run in a process of its own; RuntimeError with the end of its output where it fails."""
    job = json.dumps({"name": name, "setting": asdict(given)})
    command = [sys.executable, "-m", "lib.peers.finetuning_speed", "--arm", job]
    environment = os.environ | {"THIMBLE_QUIET": "1", "OMP_NUM_THREADS": str(machine.threads())}
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}; run it with --arm {job!r}.")
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    given: Setting, rounds: int, arms: tuple[str, ...] = ARMS, after: Callable[..., None] = lambda *found: None
) -> tuple[dict, dict, dict]:
    """Of each arm, in turns: seconds of the steps of each round, processor seconds, peak bytes of each round.

    arms: those of `ARMS` that run, the last among them. after: called with what there is after each round.
    """
    seconds, worked, peaks = ({name: [] for name in arms} for _ in range(3))

    def run(name: str) -> list[float]:
        found = in_process(name, given)
        worked[name].append(found["worked"])
        peaks[name].append(found["peak"])
        each = statistics.median(found["worked"])
        print(f"{name}: {each:.1f} s of processor time a step, {found['peak'] / 1e6:,.0f} MB", flush=True)
        return found["seconds"]

    for _ in range(rounds):
        for name, found in in_turns({name: lambda name=name: run(name) for name in arms}, 1).items():
            seconds[name] += found
        after(seconds, worked, peaks)
    return seconds, worked, peaks


def document(given: Setting, found: dict, worked: dict, peaks: dict) -> dict:
    """What `published.load` reads, of what `compare` says."""
    rows, tokens, rounds = [], given.batch * given.length, len(peaks[ARMS[-1]])
    for name in peaks:
        mine, theirs = (
            [[statistics.median(each) for each in of[arm]] for of in (worked, found)] for arm in (name, ARMS[-1])
        )
        speeds = sorted(tokens / seconds for seconds in mine[0])
        times = [statistics.median(b / a for a, b in zip(*each)) for each in zip(mine, theirs)]
        row = [name, f"{statistics.median(speeds):,.0f}", f"{speeds[0]:,.0f}", f"{speeds[-1]:,.0f}"]
        rows.append([*row, *(f"{each:.2f}" for each in times), f"{max(peaks[name]) / 1e6:,.0f}"])
    protocol = (
        f"{given.model} in {given.dtype}, rank {given.rank} on every linear layer of the blocks, {given.batch} x "
        f"{given.length} random tokens a step, {given.steps} steps a round of which the first does not count, {rounds} "
        f"round{'s' * (rounds > 1)} in turns, each arm in a process of its own with "
        f"OMP_NUM_THREADS={machine.threads()}; others may have used the machine at the same time, so tokens are told "
        "by the second of processor time."
    )
    about = {"notebook": "14_adapters", "batch": "", "machine": machine.label(), "protocol": protocol}
    about |= {"commit": machine.commit()["commit"] or "unknown", "notes": []}
    columns = ["", "tokens/s", "slowest", "fastest", "× TRL", "× TRL by the clock", "MB at the peak"]
    table = {"title": "A step of fine-tuning beside TRL's `SFTTrainer`", "columns": columns, "rows": rows}
    return about | {"tables": {"speed": table}}


def main() -> None:
    """Measure, print, and publish if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=Setting.model)
    parser.add_argument("--dtype", default=Setting.dtype, choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Setting.steps)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--without-qlora", action="store_true", help="leave our own second arm out")
    parser.add_argument("--publish", action="store_true", help=f"write data/published/{NAME}.json")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm:
        job = json.loads(asked.arm)
        print(json.dumps(arm(job["name"], Setting(**job["setting"]))))
        return
    given = Setting(asked.model, asked.dtype, steps=asked.steps, recompute=asked.recompute)
    arms = tuple(name for name in ARMS if "QLoRA" not in name or not asked.without_qlora)

    def publish(*told) -> None:  # after each round, so that one which is stopped costs no other
        text = json.dumps(document(given, *told), indent=1, ensure_ascii=False) + "\n"
        files.write_text(published.folder() / f"{NAME}.json", text)

    found, worked, peaks = compare(given, asked.rounds, arms, publish if asked.publish else lambda *told: None)
    for what, each in (("by the clock", found), ("by processor time", worked)):
        print(what, *table(each, given.batch * given.length, ARMS[-1]), sep="\n")
    for name, each in peaks.items():
        print(f"{name:28} peak memory {max(each) / 1e6:,.0f} MB more than before")


if __name__ == "__main__":
    main()
