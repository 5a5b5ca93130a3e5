"""The Hugging Face `Trainer` with checkpoints of our own: safetensors and JSON, whole or absent, known to be good.

The Trainer's own checkpoints store optimizer and random state as pickle, are written in place, and are written before
the new weights have been used. Here the state after step k is written once the loss and the gradients of step k + 1 are
known to be finite, just before that step is taken, so that the newest checkpoint never leads to NaN. A checkpoint holds
the trained weights only; all others are those of the initial model.
"""

import contextlib
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lib import files, folders, progress
from lib.trainers import divergence, shown
from lib.trainers.history import History
from lib.trainers.minibatch import IGNORED
from lib.trainers.random_state import random_state, set_random_state
from lib.trainers.schedule import schedule

TENSORS, STATE = "training.safetensors", "state.json"
KEPT = (TENSORS, STATE, TRAINER_STATE_NAME)  # all files of a checkpoint
_NAME = re.compile(r"checkpoint-(\d+)")


class Diverged(ValueError):
    """A loss or a gradient was not finite."""


class Loop(Trainer):
    """A Trainer for `loss(model, batch) -> Tensor`; used by `loop.train_`, which says what the arguments mean.

    folder: of the checkpoints, None for none. every: seconds between two of them. recipe: a `Recipe`, None to heal.
    """

    def __init__(self, *, loss, folder: Path | None, every: float, on_step=None, stop=None, recipe=None, **options):
        super().__init__(**options)
        self.loss, self.folder, self.every, self.on_step, self.stop = loss, folder, every, on_step, stop
        self.recipe = recipe
        self.loss_is_scaled_for_ga = False  # the mean over the windows of a forward pass, whatever is accumulated
        self.elapsed, self._begun, self._saved = 0.0, time.monotonic(), time.monotonic()
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Begin(self))
        self.bar = self.random = None
        self.step_tokens, self.before = 0, 0.0
        self.watch = divergence.Watch()
        self.shown = shown.Shown(self.model, bool(recipe and recipe.bfloat16))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of one forward pass; refused before the backward pass where it is not finite."""
        if self.bar is None:
            done, total = self.state.global_step, self.state.max_steps
            for each in History.of(self.state.log_history, None).losses:
                self.watch.see(each)
            self.bar = progress.bar(desc="training", unit="step", initial=done, total=total)
        if getattr(self.loss, "evaluates", False):
            model.eval()
        with self.recipe.autocast(self.model) if self.recipe else contextlib.nullcontext():
            found = torch.as_tensor(self.loss(model, inputs))
        if not math.isfinite(found.item()):
            raise Diverged(f"the loss is {found.item()} at step {self.state.global_step + 1}")
        self.step_tokens = int(inputs["step_tokens"][0]) if "step_tokens" in inputs else 0
        share = self._share(inputs)
        return found if share == 1 else found * share

    def _share(self, inputs) -> float:
        """Factor for a pass's mean, so that all passes of a step add up to the mean over the step's targets."""
        if "step_targets" not in inputs or getattr(self.loss, "mean_over", "targets") != "targets":
            return 1
        whole = int(inputs["step_targets"][0])
        if not whole:
            raise ValueError(
                f"step {self.state.global_step + 1} has no token to learn: all labels of its rows are {IGNORED}; give "
                "rows with labels, or a larger batch."
            )
        passes = self.args.gradient_accumulation_steps * self.args.world_size
        return int((inputs["labels"][:, 1:] != IGNORED).sum()) * passes / whole

    def _clip_grad_norm(self, model):
        """Called between the backward pass and the step: the present weights are known to give finite gradients."""
        norm = super()._clip_grad_norm(model) if math.isfinite(self.args.max_grad_norm) else _largest(model)
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {float(norm)} at step {self.state.global_step + 1}")
        if self.folder is not None and self.state.global_step and time.monotonic() - self._saved >= self.every:
            self.write()
        return norm

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The recipe's; without one a linear rise over 5 % of the steps, then half a cosine down to almost zero."""
        if self.lr_scheduler is None and self.recipe:
            self.lr_scheduler = self.recipe.scheduler(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        if self.lr_scheduler is None:

            def share(step: int) -> float:
                return schedule(step, num_training_steps)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss of a step, and the seconds of training so far, those before a kill included."""
        seconds = self.seconds()
        super().log(logs | {"seconds": seconds, "tokens": self.step_tokens}, start_time)
        if "loss" in logs:
            self._show(logs["loss"], seconds)
            if self.on_step:
                self.on_step(self.state.global_step, logs["loss"])
            if self.stop and self.state.global_step < self.state.max_steps and self.stop(self.state.global_step):
                self.control.should_training_stop = True

    def _show(self, loss: float, seconds: float) -> None:
        """Behind the bar, how it goes; and a line of its own where the loss rises far above what it was."""
        if not self.bar.disable:
            rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            self.bar.set_postfix_str(self.shown.text(loss, self.step_tokens, rows, seconds - self.before), False)
        self.bar.update()
        self.before = seconds
        if (rise := self.watch.see(loss)) and self.is_world_process_zero():
            self.bar.write(str(rise))

    def seconds(self) -> float:
        """Seconds of training so far, over all runs of a resumed job."""
        return self.elapsed + time.monotonic() - self._begun

    def write(self) -> None:
        """Write checkpoint-STEP and remove the older ones; of several processes the first one does."""
        if not self.is_world_process_zero():
            return

        target = self.folder / f"checkpoint-{self.state.global_step}"
        with folders.replace(target, kept=KEPT) as temporary:
            tensors = {name: tensor.detach().cpu() for name, tensor in own(self.optimizer).tensors().items()}
            tensors |= {f"random:{name}": tensor for name, tensor in self.random["tensors"].items()}
            save_file(tensors, temporary / TENSORS)
            note = {"random": self.random["plain"], "scheduler": self.lr_scheduler.state_dict()}
            files.write_text(temporary / STATE, json.dumps(note | {"seconds": self.seconds()}))
            self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
        remove_older(self.folder, target)
        self._saved = time.monotonic()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Weights come back with the optimizer's copies of them."""

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        tensors, note = read(Path(checkpoint))
        own(self.optimizer).restore(tensors)
        self.lr_scheduler.load_state_dict(note["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr()):
            group["lr"] = rate
        self.elapsed, self._begun = note["seconds"], time.monotonic()

    def _load_rng_state(self, checkpoint):
        if checkpoint is not None:
            tensors, note = read(Path(checkpoint))
            found = {name.removeprefix("random:"): tensor for name, tensor in tensors.items() if name[:7] == "random:"}
            set_random_state({"tensors": found, "plain": note["random"]})


class _Begin(TrainerCallback):
    """Stores the random state at the beginning of a step, for a checkpoint written before the step is taken."""

    def __init__(self, loop: Loop):
        self.loop = loop

    def on_step_begin(self, args, state, control, **kwargs):
        self.loop.random = random_state()


def own(optimizer):
    """Our optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first, without those of other programs under the same names."""
    return [path for path in _named(folder) if _held(path) == set(KEPT)]


def refuse_others(folder: Path) -> None:
    """Raise ValueError where checkpoints of another program lie in `folder`: ours would take their names."""
    found = [f"{path.name} ({', '.join(sorted(_others(path))[:3])})" for path in _named(folder) if _others(path)]
    if found:
        raise ValueError(
            f"{folder} holds checkpoints of another program: {', '.join(found)}; they are neither read nor replaced; "
            "give another folder."
        )


def remove_older(folder: Path, newest: Path) -> None:
    """Remove our checkpoints except the `newest`, and remains of removed ones after a kill."""
    for path in _named(folder):
        if path != newest and not _others(path):
            shutil.rmtree(path, ignore_errors=True)


def _named(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


def _others(path: Path) -> set[str]:
    """Why a folder, or a file, with a checkpoint's name is not one of ours."""
    return {"a file"} if path.is_file() else _held(path) - set(KEPT)


def _held(path: Path) -> set[str]:
    """The names in a folder; empty where another process has just removed it."""
    try:
        return set(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def steps(there: list[Path]) -> int:
    """Number of steps of the newest checkpoint in `there`; 0 without any."""
    return int(_NAME.fullmatch(there[-1].name)[1]) if there else 0


def read(checkpoint: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and plain values of a checkpoint."""
    return load_file(checkpoint / TENSORS), json.loads((checkpoint / STATE).read_text())


def history(checkpoint: Path) -> list[dict]:
    """What was logged up to a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history


def _largest(model) -> float:
    """The largest gradient by size: finite where all are, though their squares may add up to infinity."""
    return max(float(each.grad.detach().abs().max()) for each in model.parameters() if each.grad is not None)
