"""A training step of this loop beside transformers' `Trainer` and nanoGPT's script: tokens a second, in turns.

    python -m lib.peers.training_speed --nanogpt path/to/nanoGPT --rounds 3

All train the first architecture of a preset at its first depth on the same random tokens: the same batch, length,
width, blocks, heads and vocabulary, AdamW, clipping and a cosine. Products are in bfloat16 (autocast) as the preset
says, and in float32 beside nanoGPT, which has no autocast on CPUs, and whose MLP has two matrices where a Llama has
three thinner ones. nanoGPT (github.com/karpathy/nanoGPT) is a folder of yours: its `train.py` is run as it stands.
"""

import argparse
import itertools
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from lib import architectures, timing
from lib.metrics import count, memory, peaks
from lib.trainers import loop, next_token, presets
from lib.trainers.recipe import BETAS, Recipe

ROWS = 64  # of random tokens, drawn by seed 0
_NEEDED = ("train.py", "model.py", "configurator.py")
_STEP = re.compile(r"^iter \d+: loss .* time ([\d.]+)ms", re.M)


@dataclass(frozen=True)
class Setting:
    """What all train: a preset's model and batch. half: products in bfloat16. compile: by `torch.compile`."""

    preset: presets.Preset
    micro_batch: int
    half: bool
    compile: bool = False
    steps: int = 6

    @property
    def sizes(self) -> dict:
        """Of the model."""
        made = self.preset
        return made.sizes | {"vocab_size": made.vocabulary or 49152, "num_hidden_layers": made.blocks[0]}

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.preset.batch * self.preset.length

    def model(self):
        """A new one."""
        return architectures.build(self.preset.arms[0], self.sizes, 0)

    def rows(self) -> torch.Tensor:
        """Random token ids [rows, length]."""
        shape, generator = (ROWS, self.preset.length), torch.Generator().manual_seed(0)
        return torch.randint(self.sizes["vocab_size"], shape, generator=generator)


def ours(given: Setting) -> list[float]:
    """Seconds of each step but the first of this repository's loop."""
    times, made = [], Recipe(bfloat16=given.half, compile=given.compile)
    loop.train_(
        given.model(), given.rows(), next_token.loss, steps=given.steps, learning_rate=given.preset.rates[0],
        batch=given.preset.batch, micro_batch=given.micro_batch, recipe=made,
        on_step=lambda *_: times.append(timing.now()),
    )  # fmt: skip
    return apart(times)


class _Rows(Dataset):
    def __init__(self, ids: torch.Tensor, count: int):
        self.ids, self.count = ids, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> dict:
        row = self.ids[place % len(self.ids)]
        return {"input_ids": row, "labels": row}


class Clock(TrainerCallback):
    """Reads the clock after each step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *args, **kwargs):
        """Note the time."""
        self.times.append(timing.now())


def transformers(given: Setting) -> list[float]:
    """Seconds of each step but the first of transformers' `Trainer`, which logs every step too."""
    clock, made = Clock(), given.preset
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=given.steps, per_device_train_batch_size=given.micro_batch,
            gradient_accumulation_steps=made.batch // given.micro_batch, learning_rate=made.rates[0], weight_decay=0.1,
            adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=1.0, lr_scheduler_type="cosine",
            bf16=given.half, torch_compile=given.compile, logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        rows = _Rows(given.rows(), given.steps * made.batch)
        Trainer(model=given.model(), args=arguments, train_dataset=rows, callbacks=[clock]).train()
    return apart(clock.times)


def nanogpt(given: Setting, folder: Path) -> list[float]:
    """Seconds of each step but the first of nanoGPT's script in `folder`, as it prints them.

    Raises FileNotFoundError for a folder without it, RuntimeError where it fails.
    """
    if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} has no {missing[0]}; a copy of nanoGPT is needed; give its folder.")
    made, sizes = given.preset, given.sizes
    options = dict(
        n_layer=sizes["num_hidden_layers"], n_head=sizes["num_attention_heads"], n_embd=sizes["hidden_size"],
        block_size=made.length, batch_size=given.micro_batch, max_iters=given.steps, learning_rate=made.rates[0],
        gradient_accumulation_steps=made.batch // given.micro_batch, warmup_iters=1, lr_decay_iters=given.steps,
        eval_iters=1, eval_interval=10**6, device="cuda" if torch.cuda.is_available() else "cpu", dataset="random",
        dtype="bfloat16" if given.half else "float32", compile=given.compile, always_save_checkpoint=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        for each in _NEEDED:
            shutil.copy(folder / each, name)
        data = Path(name) / "data" / "random"
        data.mkdir(parents=True)
        for split in ("train", "val"):
            (data / f"{split}.bin").write_bytes(given.rows().numpy().astype(np.uint16).tobytes())
        # {"vocab_size": ...} in the format in which nanoGPT reads it
        (data / "meta.pkl").write_bytes(b"(dVvocab_size\nI%d\ns." % sizes["vocab_size"])
        command = [sys.executable, "train.py", *(f"--{key}={value}" for key, value in options.items())]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True)
    times = [float(each) / 1000 for each in _STEP.findall(done.stdout)]
    if done.returncode or len(times) < 2:
        raise RuntimeError(f"nanoGPT's train.py failed: {done.stderr.strip().splitlines()[-1:]}; run it by hand.")
    return times[1:]  # the first one measures its loss on two splits, too


def in_turns(arms: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """{arm: seconds of the steps of each round}; one after another in each round, so that all meet the same machine."""
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            found[name].append(run())
    return found


def table(found: dict[str, list[list[float]]], tokens: int, reference: str) -> list[str]:
    """A line for each arm: tokens/s of the median step, and the median over rounds of `reference`'s time over its."""
    median = {name: [statistics.median(each) for each in rounds] for name, rounds in found.items()}
    lines = []
    for name, rounds in median.items():
        ratio = statistics.median(theirs / own for own, theirs in zip(rounds, median[reference]))
        speeds = sorted(tokens / each for each in rounds)
        spread = f"{speeds[0]:,.0f} to {speeds[-1]:,.0f}"
        lines.append(f"{name:28} {statistics.median(speeds):8,.0f} tokens/s ({spread}), {ratio:.2f} x {reference}")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--nanogpt", type=Path, help="folder of nanoGPT; left out without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--micro-batch", type=int, help="rows of a pass; the preset's without")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    made = presets.by_name(given.preset)
    rows = given.micro_batch or made.micro_batch
    half, full = (Setting(made, rows, each, given.compile, given.steps) for each in (True, False))
    arms = {"ours, bfloat16": lambda: ours(half), "Trainer, bfloat16": lambda: transformers(half)}
    plain = {"ours, float32": lambda: ours(full), "Trainer, float32": lambda: transformers(full)}
    if given.nanogpt:
        plain["nanoGPT, float32"] = lambda: nanogpt(full, given.nanogpt)
    model, peak = half.model(), peaks.measure()
    flops = 3 * count.flops_per_token(model, made.length // 2)
    for some, kind in ((arms, "bfloat16"), (plain, "float32")):
        found = in_turns(some, given.rounds)
        print("\n".join(table(found, half.tokens, list(some)[-1])))
        best = statistics.median(statistics.median(each) for each in found[next(iter(some))])
        print(
            f"MFU of ours: {flops * half.tokens / best / peak.flops[kind]:.1%} of {peak.flops[kind] / 1e9:,.0f} GFLOP/s"
        )
    for name, run in (arms | plain).items():
        if "nanoGPT" not in name:
            print(f"{name:28} peak memory {memory.call(run)[1].increase.value / 1e6:,.0f} MB more than before")


def apart(times: list[float]) -> list[float]:
    """The seconds between each time and the one before."""
    return [after - before for before, after in itertools.pairwise(times)]


if __name__ == "__main__":
    main()
