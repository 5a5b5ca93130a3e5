"""The training loop, built on the Hugging Face `Trainer`.

It trains the parameters that require a gradient (`adapters` chooses them) by any `loss(model, batch) -> Tensor`. Rows
are drawn without repetition until all have been used, in an order that depends on the seed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.models import rotary
from lib.sources import token_windows
from lib.trainers import arguments, checkpoints, job, minibatch, processes, sharding, trainer, training_data
from lib.trainers.divergence import Diverged
from lib.trainers.history import History
from lib.trainers.optimizer import AdamW
from lib.trainers.random_state import random_state, set_random_state
from lib.trainers.recipe import Recipe

EVERY = 120  # seconds between two checkpoints; a killed training repeats at most these


def train_(
    model: nn.Module,
    data,
    loss: Callable[[nn.Module, dict], Tensor],
    *,
    steps: int | None = None,
    tokens: int | None = None,
    learning_rate: float,
    batch: int = 4,
    micro_batch: int = 1,
    seed: int = 0,
    folder: Path | str | None = None,
    every: float = EVERY,
    on_step: Callable[[int, float], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    collate: Callable[[list[dict]], dict] | None = None,
    optimizer: type[torch.optim.Optimizer] | None = None,
    clip: float = 1.0,
    recipe: Recipe | None = None,
) -> History:
    """Train the parameters of `model` that require a gradient, in place.

    data: windows of text, token ids [count, length], or rows as `minibatch` says, of any lengths: a sized data set, or
    an iterable, which is read in its own order. loss: called with the model and a batch of such rows side by side
    {"input_ids", "labels", "attention_mask" [rows, length], "window" [rows]}, the rows' indices; it returns the mean
    over the targets (over the rows, where it has `mean_over = "rows"`). collate: makes a batch of a list of rows; None
    is `minibatch.collate`. With one's own, rows may have other columns.
    steps, or tokens: length of the training; `tokens` are rounded down to whole steps of `batch` rows. micro_batch:
    rows of one forward pass; gradients of batch / micro_batch passes add up. learning_rate: the peak of AdamW's.
    folder: keeps checkpoints, `every` so many seconds; a killed training resumes there and on a CPU ends in the same
    bytes. on_step: called after each step with its number, from 1, and its loss. stop: asked before each step with the
    number of those done; True ends the training there. optimizer: torch's optimizer that steps float32 copies of the
    weights, AdamW where it is None. clip: the norm to which a longer gradient is shortened. recipe: how a training from
    scratch is run. A loss with `evaluates = True` is computed in eval mode.

    Processes that `accelerate launch` or torchrun started divide each batch; with `--use_fsdp --fsdp_version 2` the
    weights too (`sharding`), of a model that computes on GPUs where there are some. `folder` must be on a disk that all
    of them see, and as many must resume. Each ends with the whole model.

    Raises ValueError, before anything is trained, for data shorter than a batch, a model without trained weights,
    arguments out of range, and a folder that holds a training with other arguments; OSError where its disk is too
    small. A loss or gradient that is not finite raises ValueError too, and the model goes back to the last checkpoint,
    which is good, or to the weights that it came with.
    """
    source = training_data.of(data, model, checked=collate is None)
    steps = _check(source, _trained(model), steps, tokens, batch, micro_batch, learning_rate)
    training_data.check_tables(model, source, micro_batch)
    settings = dict(steps=steps, batch=batch, micro_batch=micro_batch, learning_rate=learning_rate, seed=seed)
    settings |= ({} if clip == 1 else {"clip": clip}) | (recipe.settings() if recipe else {})
    if hasattr(loss, "check"):
        loss.check(model)
    source.tell_passes(steps * batch)
    folder = None if folder is None else Path(folder)
    with sharding.apart(model) as (asked, device):
        made = arguments.make(settings, folder, cpu=device.type == "cpu")
        parts = processes.count() if asked else 1
        kept = job.open_(folder, model, source, loss, settings, parts) if folder else contextlib.nullcontext()
        prepared = recipe.prepared(model) if recipe else contextlib.nullcontext()
        with kept, _as_it_was(model), prepared, sharding.spread(model, made, parts), _undone(model) as undo:
            rows = training_data.in_steps(source, model, settings, checked=collate is None)
            options = {"folder": folder, "every": every, "on_step": on_step, "stop": stop, "recipe": recipe}
            loop = _trainer(made, model, rows, loss, settings, collate, optimizer, **options)
            return _run(loop, undo, folder, learning_rate, source.tokens)


def _run(
    loop: trainer.Loop, undo: Callable, folder: Path | None, learning_rate: float, text_tokens: int | None
) -> History:
    """Train from the newest checkpoint on."""
    there = checkpoints.checkpoints(folder) if folder else []
    try:
        if loop.stops(checkpoints.steps(there)):
            return History.of(_left(there, undo), text_tokens)
        loop.train(resume_from_checkpoint=str(there[-1]) if there else None)
    except Diverged as error:
        there = checkpoints.checkpoints(folder) if folder else []
        state = f"the weights of {there[-1].name}" if there else "the weights that it came with"
        undo(checkpoints.read(there[-1])[0] if there else None)
        raise Diverged(
            f"{error} of {loop.state.max_steps}; it must be finite; the model has {state}: "
            f"use a learning_rate below {learning_rate:g}, or a model in bfloat16 or float32."
        ) from None
    finally:
        if loop.bar is not None:
            loop.bar.close()
    if folder and (not there or there[-1].name != f"checkpoint-{loop.state.global_step}"):
        loop.write()
    return History.of(loop.state.log_history, text_tokens)


def _left(there: list[Path], undo: Callable) -> list[dict]:
    """Load the weights of the newest checkpoint, if there is one, and return its log."""
    if not there:
        return []
    undo(checkpoints.read(there[-1])[0])
    return checkpoints.history(there[-1])


def _trainer(made, model, rows, loss, settings: dict, collate, optimizer, *, folder, recipe, **options):
    given = {"learning_rate": settings["learning_rate"], "optimizer_class": optimizer}
    given["make"] = functools.partial(recipe.optimizers, model) if recipe else None
    return trainer.Loop(
        model=model,
        args=made,
        train_dataset=rows,
        data_collator=collate or minibatch.collate,
        optimizers=(AdamW(_trained(model), **given), None),
        loss=loss,
        folder=folder,
        recipe=recipe,
        **options,
    )


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore the global random states, the modules' modes and the cache setting that the Trainer changes."""
    state, modes = random_state(), {module: module.training for module in model.modules()}
    cached = getattr(model.config, "use_cache", None)
    try:
        with rotary.forgetting(model):
            yield
    finally:
        set_random_state(state)
        if cached is not None:
            model.config.use_cache = cached
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _undone(model: nn.Module) -> Iterator[Callable]:
    """Yield a function that resets the parameters to a checkpoint or to their initial values; drop gradients."""
    trained = _trained(model)
    before = {name: sharding.local(parameter.detach()).clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def undo(tensors: dict[str, Tensor] | None) -> None:
        for name, parameter in trained.items():
            sharding.local(parameter).copy_(tensors[f"{name}:value"] if tensors else before[name])

    try:
        yield undo
    finally:
        for parameter in trained.values():
            parameter.grad = None


def tokens_of(data, model: nn.Module) -> Tensor | token_windows.Rows:
    """Token ids [count, length] of data whose rows are windows of one length; ValueError for others.

    Windows of a streamed text stay in their file.
    """
    source = training_data.of(data, model)
    if not source.alike:
        raise ValueError("the data has rows of unequal lengths, or none that count; cut the text into windows first.")
    if isinstance(source.rows, training_data.Windows):
        return source.rows.ids
    return torch.stack([torch.as_tensor(source.rows[place]["input_ids"]) for place in range(source.count)])


def _check(
    source: training_data.Source, trained, steps, tokens, batch: int, micro_batch: int, learning_rate: float
) -> int:
    """The number of steps."""
    length = source.length
    if not trained:
        raise ValueError("no weight of the model requires a gradient; choose some with trainers.adapters.")
    if (steps is None) == (tokens is None):
        raise ValueError(f"steps={steps} and tokens={tokens}; exactly one of them says how long; give one.")
    if (length or 2) < 2 or batch < 1 or micro_batch < 1 or batch % micro_batch or not learning_rate > 0:
        raise ValueError(
            f"batch={batch}, micro_batch={micro_batch}, learning_rate={learning_rate} on windows of {length} tokens; "
            "allowed are batches of 1 or more windows, a divisor of it at once, a positive rate, and 2 or more tokens."
        )
    if source.count is not None and source.count < batch:
        has = f"the healing text has {source.described().removeprefix('the ')}"
        raise ValueError(
            f"{has} and a batch takes {batch}; at least one batch is needed; give a longer text, or shorter windows, "
            "or a smaller batch."
        )
    if steps is None and length is None:
        raise ValueError(f"tokens={tokens} of data whose length nobody knows; say how long by steps.")
    steps = int(tokens // (batch * length)) if steps is None else steps
    if steps < 1:
        raise ValueError(
            f"steps={steps}" + (f" from tokens={tokens}" if tokens is not None else "") + "; 1 or more are allowed, "
            f"and a step takes {batch * (length or 0):.0f} tokens; train longer or take a smaller batch."
        )
    return steps
