"""The Hugging Face `Trainer` with checkpoints of our own.

The Trainer's own checkpoints store optimizer and random state as pickle, are written in place, and are written before
the new weights have been used. Here the state after step k is written once the loss and the gradients of step k + 1 are
known to be finite, just before that step is taken, so that the newest checkpoint never leads to NaN.
"""

import contextlib
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lib import files, progress
from lib.metrics import rapl
from lib.models import attention
from lib.trainers import checkpoints, divergence, processes, sharding, shown
from lib.trainers.divergence import Diverged
from lib.trainers.history import History
from lib.trainers.minibatch import IGNORED
from lib.trainers.random_state import random_state, set_random_state
from lib.trainers.schedule import schedule


class Loop(Trainer):
    """A Trainer for `loss(model, batch) -> Tensor`; used by `loop.train_`, which says what the arguments mean.

    folder: of the checkpoints, None for none. every: seconds between two of them. recipe: a `Recipe`, None to heal.
    """

    def __init__(self, *, loss, folder: Path | None, every: float, on_step=None, stop=None, recipe=None, **options):
        super().__init__(**options)
        self.spread = sharding.spread_over(self.model)
        self.is_distributed_loading_by_transformers = self.spread  # the Trainer takes a spread model as it is
        self.loss, self.folder, self.every, self.on_step, self.stop = loss, folder, every, on_step, stop
        self.recipe = recipe
        self.loss_is_scaled_for_ga = False  # the mean over the windows of a forward pass, whatever is accumulated
        self.elapsed, self._begun, self._saved = 0.0, time.monotonic(), time.monotonic()
        self.spent, self._meter = 0.0, rapl.Meter()
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Begin(self))
        self.bar = self.random = None
        self.step_tokens, self.before = 0, 0.0
        self.watch = divergence.Watch()
        self.shown = shown.Shown(self.model, bool(recipe and recipe.bfloat16))

    def training_step(self, *args, **options):
        """As the Trainer's; without a recipe by the faster attention, in both passes."""
        with contextlib.nullcontext() if self.recipe else attention.fast():
            return super().training_step(*args, **options)

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
        self._check_finite(found.item(), found.device, "loss")
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
        norm = sharding.number(norm)
        self._check_finite(norm, self.args.device, "gradient's norm")
        if self.folder is not None and self.state.global_step:
            due = time.monotonic() - self._saved >= self.every
            if processes.of_first(due) if self.spread else due:
                self.write()
        return norm

    def _check_finite(self, value: float, device: torch.device, what: str) -> None:
        """Raise `Diverged` in all processes where the `value` of one is not finite."""
        if processes.somewhere(not math.isfinite(value), device):
            value = "not finite in another process" if math.isfinite(value) else value
            raise Diverged(f"the {what} is {value} at step {self.state.global_step + 1}")

    def _move_model_to_device(self, model, device: torch.device) -> None:
        """A spread model is where it computes."""
        if not sharding.spread_over(model):
            super()._move_model_to_device(model, device)

    def _defer_fsdp_gradient_reduction(self):
        """Spread gradients add up in parts: whole ones would take the memory that spreading saves."""
        return contextlib.nullcontext()

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

    def joules(self) -> float | None:
        """Energy of the machine since the start, what was spent before a kill included; None without counters."""
        now = self._meter.joules()
        return None if now is None or self.spent is None else self.spent + now

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss of a step, and the seconds of training so far, those before a kill included."""
        seconds = self.seconds()
        noted = {"seconds": seconds, "tokens": self.step_tokens, "joules": self.joules()}
        if "loss" in logs and (measures := getattr(self.loss, "measures", None)) is not None:
            noted["measures"] = measures.told(self.args.device)
        super().log(logs | noted, start_time)
        if "loss" in logs:
            self._show(logs["loss"], seconds)
            if self.on_step:
                with sharding.readable(self.model):
                    self.on_step(self.state.global_step, logs["loss"])
            if self.state.global_step < self.state.max_steps and self.stops(self.state.global_step):
                self.control.should_training_stop = True

    def stops(self, steps: int) -> bool:
        """Whether the training ends after so many steps: of several processes, the first one's clock decides."""
        return bool(self.stop and processes.of_first(self.stop(steps)))

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
        """Write checkpoint-STEP and remove the older ones: the first process, or each its part of spread weights."""
        count = processes.count() if self.spread else 1
        if count == 1 and not self.is_world_process_zero():
            return
        target = self.folder / f"checkpoint-{self.state.global_step}"
        random = processes.all_of(self.random["plain"]) if count > 1 else self.random["plain"]
        with checkpoints.written(target, count) as temporary:
            tensors = {name: tensor.detach().cpu() for name, tensor in own(self.optimizer).tensors().items()}
            tensors |= {f"random:{name}": tensor for name, tensor in self.random["tensors"].items()}
            save_file(tensors, temporary / checkpoints.part(processes.place() if count > 1 else 0, count))
            if processes.first():
                note = {"random": random, "scheduler": self.lr_scheduler.state_dict(), "seconds": self.seconds()}
                note["joules"] = self.joules()
                files.write_text(temporary / checkpoints.STATE, json.dumps(note))
                self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
        if processes.first():
            checkpoints.remove_older(self.folder, target)
        self._saved = time.monotonic()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Weights come back with the optimizer's copies of them."""

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        tensors, note = checkpoints.read(Path(checkpoint))
        own(self.optimizer).restore(tensors)
        self.lr_scheduler.load_state_dict(note["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr()):
            group["lr"] = rate
        self.elapsed, self._begun = note["seconds"], time.monotonic()
        self.spent, self._meter = note.get("joules"), rapl.Meter()

    def _load_rng_state(self, checkpoint):
        if checkpoint is not None:
            tensors, note = checkpoints.read(Path(checkpoint))
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


def _largest(model) -> float:
    """The largest gradient by size: finite where all are, though their squares may add up to infinity."""
    found = [sharding.local(each.grad) for each in model.parameters() if each.grad is not None]
    return max((float(each.abs().max()) for each in found if each.numel()), default=0.0)
