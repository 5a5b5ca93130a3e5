"""The one training loop, over the Hugging Face `Trainer`.

What is trained is what requires a gradient (`adapters` chooses it), towards any `loss(model, batch) -> Tensor`.
Windows are drawn without repetition until all have been seen, in an order that the seed decides.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import files, folders
from lib.jobs import State, circumstances
from lib.models import logits, structure
from lib.trainers.schedule import windows

EVERY = 120  # seconds between two checkpoints; a killed training repeats at most these
_ROOM = 16 << 20  # bytes of a checkpoint beside the tensors


@dataclass(frozen=True)
class History:
    """What a training leaves beside the model: one entry a step. seconds: since the start, kills left out.

    text_tokens: how many the text has, each counted once.
    """

    losses: list[float]
    seconds: list[float]
    learning_rates: list[float]
    tokens_per_step: int
    text_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens trained on, repetitions included."""
        return self.tokens_per_step * len(self.losses)

    @property
    def passes(self) -> float:
        """How many times the text was read."""
        return self.tokens / self.text_tokens


def train_(
    model: nn.Module,
    data,
    loss: Callable[[nn.Module, dict], Tensor],
    *,
    steps: int | None = None,
    tokens: int | None = None,
    learning_rate: float,
    batch: int = 4,
    at_once: int = 1,
    seed: int = 0,
    folder: Path | str | None = None,
    every: float = EVERY,
    watch: Callable[[int, float], None] | None = None,
) -> History:
    """Train what requires a gradient in `model`, in place.

    data: windows of text, token ids [count, length], or a data set with a column `input_ids` of equal lengths.
    loss: called with the model and a batch {"input_ids": [windows, length], "window": [windows]}, the windows' places.
    steps, or tokens: how long; `tokens` are rounded down to whole steps of `batch` windows. at_once: windows of one
    forward pass; gradients of batch / at_once passes add up. learning_rate: the peak of AdamW's.
    folder: keeps checkpoints, `every` so many seconds; a killed training resumes there and on a CPU ends in the same
    bytes (not with weights that FSDP spreads over processes: those train without a folder only). watch: called after
    each step with its number, from 1, and its loss.

    Raises ValueError, before anything is trained, for data shorter than a batch, a model without trained weights,
    arguments out of range, and a folder that holds a training with other arguments; OSError where its disk is too
    small. A loss or gradient that is not finite raises ValueError too, and the model goes back to the last checkpoint,
    which is good, or to the weights that it came with.
    """
    ids = tokens_of(data, model)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    steps = _check(ids, trained, steps, tokens, batch, at_once, learning_rate)
    settings = {"steps": steps, "batch": batch, "at_once": at_once, "learning_rate": learning_rate, "seed": seed}
    if hasattr(loss, "check"):
        loss.check(model)
    if steps * batch > len(ids):
        amount, times = steps * batch * ids.shape[1], steps * batch / len(ids)
        text = f"the {len(ids)} windows of {ids.shape[1]} tokens"
        print(f"{amount:,} tokens of training are {times:.3g} passes over {text}")
    if folder is not None:
        folder = _open(Path(folder), model, ids, loss, trained, settings)
    with _as_it_was(model), _undone(trained) as undo:
        trainer = _trainer(model, ids, loss, trained, settings, folder, every, watch)
        return _run(trainer, undo, folder, learning_rate, (batch * ids.shape[1], ids.numel()))


def _run(trainer, undo: Callable, folder: Path | None, learning_rate: float, tokens: tuple[int, int]) -> History:
    """Train from the newest checkpoint on. tokens: of a step, and of the whole text."""
    from lib.trainers import checkpoints

    there = checkpoints.checkpoints(folder) if folder else []
    try:
        trainer.train(resume_from_checkpoint=str(there[-1]) if there else None)
    except checkpoints.Diverged as error:
        there = checkpoints.checkpoints(folder) if folder else []
        state = f"the weights of {there[-1].name}" if there else "the weights that it came with"
        undo(checkpoints.read(there[-1])[0] if there else None)
        raise ValueError(
            f"{error} of {trainer.state.max_steps}; it must be finite; the model has {state}: "
            f"use a learning_rate below {learning_rate:g}, or a model in bfloat16 or float32."
        ) from None
    finally:
        if trainer.bar is not None:
            trainer.bar.close()
    if folder and (not there or there[-1].name != f"checkpoint-{trainer.state.global_step}"):
        trainer.write()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    columns = ([entry[name] for entry in entries] for name in ("loss", "seconds", "learning_rate"))
    return History(*columns, *tokens)


def _trainer(model, ids, loss, trained, settings: dict, folder, every, watch):
    from lib.trainers import arguments
    from lib.trainers.checkpoints import Loop
    from lib.trainers.optimizer import AdamW

    made = arguments.make(settings, folder, cpu=logits.device(model).type == "cpu")
    optimizer = None if arguments.sharded(made) else AdamW(trained, learning_rate=settings["learning_rate"])
    batches = (windows(step, settings["batch"], len(ids), settings["seed"]) for step in range(settings["steps"]))
    return Loop(
        model=model,
        args=made,
        train_dataset=[{"input_ids": ids[place], "window": place} for chosen in batches for place in chosen],
        optimizers=(optimizer, None),
        loss=loss,
        folder=folder,
        every=every,
        watch=watch,
    )


def _open(folder: Path, model, ids: Tensor, loss, trained: dict, settings: dict) -> Path:
    """The folder of this very training, with room for its checkpoints; refused where it belongs to another."""
    from lib import checkpoints
    from lib.trainers import adapters
    from lib.trainers.checkpoints import KEPT, refuse_others

    # a value and two moments in float32; while one checkpoint is written, the one before it is still there
    size = 12 * sum(parameter.numel() for parameter in trained.values()) + _ROOM
    files.check_writable(folder / "checkpoint", 2 * size)
    # names for what the caller knows by name; a hash for weights that were chosen by hand
    names = hashlib.sha256(" ".join(sorted(trained)).encode()).hexdigest()[:12]
    identity = getattr(loss, "identity", None) or {"loss": loss.__module__.rpartition(".")[2]}
    job = {"model": checkpoints.fingerprint(model), "layers": structure.fingerprint(model), **adapters.chosen(model)}
    job |= {"data": files.data_hash(ids), "names": names}
    refuse_others(folder)
    State(folder, **circumstances("trainers"), **job, **identity, **settings)
    folders.remove_leftovers(folder / "checkpoint", kept=KEPT, name=r"checkpoint-\d+")
    return folder


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back the global random states, the modules' modes and the cache setting that the Trainer changes."""
    from lib.trainers.checkpoints import random_state, set_random_state

    state, modes = random_state(), {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        set_random_state(state)
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _undone(trained: dict[str, nn.Parameter]) -> Iterator[Callable]:
    """Yield a function that sets the parameters to a checkpoint's tensors, or to what they are now; drop gradients."""
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def undo(tensors: dict[str, Tensor] | None) -> None:
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"{name}:value"] if tensors else before[name])

    try:
        yield undo
    finally:
        for parameter in trained.values():
            parameter.grad = None


def tokens_of(data, model: nn.Module) -> Tensor:
    """Token ids [count, length] of whatever `train_` takes as its data."""
    from lib.sources import texts

    columns = getattr(data, "column_names", None)
    if columns is None:
        return texts.tokens(data, model)
    if "input_ids" not in columns:
        raise ValueError(f"the data set has columns {', '.join(columns)}; it needs input_ids; tokenize it first.")
    lengths = {len(row) for row in data["input_ids"]}
    if len(lengths) != 1:
        raise ValueError(
            f"the data set's input_ids have {len(lengths)} lengths, {min(lengths, default=0)} to "
            f"{max(lengths, default=0)}; windows of one length are trained on; cut the text into windows first."
        )
    return texts.tokens(torch.tensor(data["input_ids"]), model)


def _check(ids: Tensor, trained, steps, tokens, batch: int, at_once: int, learning_rate: float) -> int:
    """The number of steps."""
    count, length = ids.shape
    if not trained:
        raise ValueError("no weight of the model requires a gradient; choose some with trainers.adapters.")
    if (steps is None) == (tokens is None):
        raise ValueError(f"steps={steps} and tokens={tokens}; exactly one of them says how long; give one.")
    if length < 2 or batch < 1 or at_once < 1 or batch % at_once or not learning_rate > 0:
        raise ValueError(
            f"batch={batch}, at_once={at_once}, learning_rate={learning_rate} on windows of {length} tokens; allowed "
            "are batches of 1 or more windows, a divisor of it at once, a positive rate, and 2 or more tokens."
        )
    if count < batch:
        raise ValueError(
            f"the healing text has {count} windows of {length} tokens and a batch takes {batch}; at least one batch "
            "is needed; give a longer text, or shorter windows, or a smaller batch."
        )
    steps = tokens // (batch * length) if steps is None else steps
    if steps < 1:
        raise ValueError(
            f"steps={steps}" + (f" from tokens={tokens}" if tokens is not None else "") + "; 1 or more are allowed, "
            f"and a step takes {batch * length} tokens; train longer or take a smaller batch."
        )
    return steps
