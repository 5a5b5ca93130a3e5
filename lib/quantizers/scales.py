"""Scales end to end: the codes stay, and the scales of the whole model learn to answer as the original does.

Source: Chen et al., "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models", arXiv 2407.11062,
section 3.3 (the second phase, E2E-QP). Two things differ from the paper: the loss is KL(original || quantized) over
the whole vocabulary instead of the next token's cross-entropy, because a hundred windows of targets say less than
the original's own distributions on them; and a scale moves in proportion to its size, s = s₀ (1 + δ), so that one
learning rate suits all layers. Zero points are integers and stay; in `learned_zero_points` they move too.

Of all methods here this one's working set is more than a block's: the backward pass needs the activations of all blocks
(those of one step's windows), and each scale has its δ, its gradient and Adam's two moments, four float32 numbers a
group. Weights are held as codes alone: no product keeps a dense matrix, its backward pass makes it again. Where the
activations don't fit into memory, blocks are computed anew in the backward pass (`activations`); the bytes are the
same.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lib import progress, timing
from lib.jobs import Steps
from lib.metrics import divergence
from lib.models import logits
from lib.models.reference import Reference
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear
from lib.quantizers import activations, calibrate
from lib.quantizers.learnable_scale import Tuned
from lib.trainers.schedule import schedule, windows

LEARNING_RATE = 16e-3  # peak of δ's rate, times 2^bits
BETAS = (0.9, 0.95)


def tune_(
    model: nn.Module,
    calibration,
    reference,
    *,
    steps: int,
    batch: int = 1,
    learning_rate: float | None = None,
    seed: int = 0,
    state=None,
    watch: Callable[[int, float], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    kind: type[Tuned] = Tuned,
) -> dict[str, Quantized]:
    """Tune the scales of every quantized layer inside the blocks of `model`, in place; return all of them by name.

    calibration: windows of text, or token ids [count, length]. reference: the original model, or what
    `divergence.remember` kept of it on these very windows. steps: updates, of `batch` windows each, drawn without
    repetition until all have been seen. learning_rate: of δ, at its peak; None takes `LEARNING_RATE` / 2^bits.
    state: folder that keeps the training's state, so that a killed job resumes and ends in the same bytes.
    watch: called after each step with its number, from 1, and the mean KL in nats on its windows before the step.
    stop: asked before each step with the number of those done; True ends the tuning there. kind: what stands in a
    layer's place and says what is learned.
    Raises ValueError for a model without quantized layers, for steps or batch below 1, for a learning_rate that is not
    positive, and when the loss is not finite (the model then keeps the scales that it came with); MemoryError, before
    the work, when a step's activations don't fit.
    """
    from lib.sources import texts

    tokens = texts.tokens(calibration, model)
    found = _check(model, steps, batch, len(tokens))
    again = activations.must_recompute(model, batch * tokens.shape[1])
    rate = learning_rate
    if rate is None:
        rate = rate_of(list(found.values()))
    if not 0 < rate < math.inf:
        raise ValueError(f"learning_rate={rate}; the scales move by a positive share; leave it out, or try 1e-3.")
    original = reference if isinstance(reference, Reference) else divergence.remember(reference, tokens)
    original.check(tokens)
    settings = {"steps": steps, "batch": batch, "learning_rate": rate, "seed": seed}
    job = Steps.open(state, model, tokens, method=kind.METHOD, reference=original.fingerprint, **settings)
    with _tuned(model, found, again, kind) as tuned:
        _train(model, original, tokens, tuned, job, watch=watch, stop=stop, **settings)
        for part in tuned.values():
            part.settle_()
    return {name: layer.quantized for name, layer in found.items()}


def rate_of(layers: list[QuantLinear]) -> float:
    """Peak learning rate of δ for `layers`, by the mean bits of their weights; each bit more halves it.

    δ moves the outermost value of a group by δ · 2^(bits-1) steps of its grid: at 8 bits the rate that helps at 4
    would do more harm than the rounding did.
    """
    counts = [layer.in_features * layer.out_features for layer in layers]
    bits = sum(layer.bits * count for layer, count in zip(layers, counts)) / sum(counts)
    return LEARNING_RATE / 2**bits


def _train(
    model, original, tokens, tuned, job, *, steps: int, batch: int, learning_rate: float, seed: int, watch, stop
) -> None:
    """Adam on what all `tuned` layers learn, from the step at which `job` was left."""
    deltas = {f"{name}{suffix}": each for name, part in tuned.items() for suffix, each in part.learned().items()}
    optimizer = torch.optim.Adam(deltas.values(), lr=learning_rate, betas=BETAS)
    first = job.restore(deltas, optimizer)
    for step in progress.bar(range(first, steps), desc="scales", unit="step", initial=first, total=steps):
        if stop and stop(step):
            break
        optimizer.param_groups[0]["lr"] = learning_rate * schedule(step, steps)
        loss = _step(model, original, tokens, windows(step, batch, len(tokens), seed))
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {step + 1} of {steps}; it must be finite; the model keeps its scales: "
                f"use a learning_rate below {learning_rate:g}, or a model in bfloat16 or float32."
            )
        optimizer.step()
        optimizer.zero_grad()
        job.save(step + 1, loss, deltas, optimizer)
        if watch:
            watch(step + 1, loss)


def seconds_per_step(model: nn.Module, calibration, reference: Reference, *, batch: int = 1) -> float:
    """How long one step of `tune_` takes on this machine: the second of two, neither of which changes anything."""
    from lib.sources import texts

    tokens = texts.tokens(calibration, model)
    again = activations.must_recompute(model, batch * tokens.shape[1])
    with _tuned(model, _check(model, 1, batch, len(tokens)), again):
        for _ in range(2):
            with timing.stopwatch() as watch:
                _step(model, reference, tokens, list(range(batch)))
    return watch.seconds


def _step(model: nn.Module, original: Reference, tokens: Tensor, chosen: list[int]) -> float:
    """Forward and backward pass over the `chosen` windows; gradients add up in the δ; returns the mean KL in nats."""
    total, rows = 0.0, len(chosen) * (tokens.shape[1] - 1)
    with torch.enable_grad():
        run, projection = logits.split(model)
        hidden = run(tokens[chosen])[:, :-1]
        gradients = []
        for index, states in zip(chosen, hidden.detach()):
            loss, gradient = _loss(states, projection, original.rows(index, 1), rows)
            total += loss
            gradients.append(gradient)
        hidden.backward(torch.stack(gradients))
    return total


def _loss(states: Tensor, projection: Callable, original: logits.Rows, rows: int) -> tuple[float, Tensor]:
    """KL(original || model) summed over one window and divided by `rows`, and its gradient by `states`.

    A chunk of positions at a time: the logits of a whole window, and all that autograd would keep of them, are large.
    """
    states, total = states.requires_grad_(), 0.0
    for chunk in logits.chunks(len(states), projection.vocabulary):
        with torch.no_grad():
            p = original(chunk).float().log_softmax(-1)
        q = projection(states[chunk]).float().log_softmax(-1)
        loss = (p.exp() * (p - q)).sum() / rows
        loss.backward()
        total += loss.item()
    return total, states.grad


@contextlib.contextmanager
def _tuned(
    model: nn.Module, found: dict[str, QuantLinear], again: bool, kind: type[Tuned] = Tuned
) -> Iterator[dict[str, Tuned]]:
    """Stand-ins of a `kind` for the layers inside the block; all other parameters rest, and all is put back after it.

    again: whether blocks keep their inputs alone, and are computed anew in the backward pass.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tuned = {name: kind(layer, model.dtype) for name, layer in found.items()}
    try:
        with logits.evaluating(model), activations.recomputed(model) if again else contextlib.nullcontext():
            for parameter in trained:
                parameter.requires_grad_(False)
            for name, part in tuned.items():
                model.set_submodule(name, part)
            yield tuned
    finally:
        for name, layer in found.items():
            model.set_submodule(name, layer)
        for parameter in trained:
            parameter.requires_grad_(True)


def _check(model: nn.Module, steps: int, batch: int, count: int) -> dict[str, QuantLinear]:
    found = {name: layer for name, layer in calibrate.layers(model).items() if isinstance(layer, QuantLinear)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no quantized layers; scales are tuned after a quantizer; call one first "
            "(quantizers.gptq.quantize_, say)."
        )
    if steps < 1 or not 1 <= batch <= count:
        raise ValueError(
            f"steps={steps} and batch={batch} with {count} windows; there must be 1 or more steps, and 1 to {count} "
            "windows in a batch; change them, or give more windows."
        )
    return found
