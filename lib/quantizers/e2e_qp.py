"""End-to-end training of quantization parameters (E2E-QP): codes stay fixed, scales learn the original's predictions.

Source: Chen et al., "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models", arXiv 2407.11062,
section 3.3 (the second phase, E2E-QP). Two things differ from the paper: the loss is KL(original || quantized) over
the whole vocabulary instead of the next token's cross-entropy, because on a hundred windows the original's
distributions carry more information than the tokens; and a scale moves in proportion to its size, s = s₀ (1 + δ), so
that one learning rate suits all layers. Zero points are integers and stay fixed; `learned_zero_points` trains them too.

This method alone needs more memory than one block's: the backward pass needs the activations of all blocks for the
windows of one step, and each scale has its δ, the initial value, the optimizer's copy, its gradient and Adam's two
moments: six float32 numbers per group. Weights are held only as codes; the backward pass dequantizes them again. Where
the activations don't fit into memory, blocks are recomputed in the backward pass (`activations`), with the same bytes.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from lib import files, jobs, timing
from lib.metrics import divergence
from lib.models import logits
from lib.models.reference import Reference
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear
from lib.quantizers import activations, calibrate
from lib.quantizers.learnable_scale import LearnableScaleLinear
from lib.sources import texts
from lib.trainers import chunked, loop, minibatch

LEARNING_RATE = 16e-3  # peak of δ's rate, times 2^bits


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
    on_step: Callable[[int, float], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    layer_class: type[LearnableScaleLinear] = LearnableScaleLinear,
) -> dict[str, Quantized]:
    """Train the scales of every quantized layer inside the blocks of `model`, in place; return all of them by name.

    calibration: windows of text, or token ids [count, length]. reference: the original model, or the result of
    `divergence.remember` on the same windows. steps: updates, of `batch` windows each, drawn without repetition until
    all have been seen. learning_rate: of δ, at its peak; None takes `LEARNING_RATE` / 2^bits. state: folder that keeps
    the training's state, so that a killed job resumes and ends in the same bytes. on_step: called after each step with
    its number, from 1, and the mean KL in nats on its windows before the step. stop: asked before each step with the
    number of those done; True ends the tuning there. layer_class: replaces the layers and defines the trained
    parameters. Raises ValueError for a model without quantized layers, for steps or batch below 1, for a learning_rate
    that is not positive, and when the loss is not finite (the model then keeps its initial scales); MemoryError, before
    the work, when a step's activations don't fit.
    """
    tokens = texts.tokens(calibration, model)
    found = quantized_layers(model)
    _check(steps, batch, len(tokens))
    again = activations.must_recompute(model, batch * tokens.shape[1])
    rate = learning_rate
    if rate is None:
        rate = rate_of(list(found.values()))
    if not 0 < rate < math.inf:
        raise ValueError(f"learning_rate={rate}; the scales move by a positive share; leave it out, or try 1e-3.")
    original = reference if isinstance(reference, Reference) else divergence.remember(reference, tokens)
    original.check(tokens)
    identity = {"method": layer_class.METHOD, "reference": original.fingerprint, "quantizers": jobs.code("quantizers")}
    identity["calibration"] = files.data_hash(tokens)
    micro_batch = max(1, batch // int(os.environ.get("WORLD_SIZE", 1)))  # processes share a step
    settings = {"steps": steps, "batch": batch, "micro_batch": micro_batch, "learning_rate": rate, "seed": seed}
    options = {"folder": state, "every": jobs.EVERY, "on_step": on_step, "stop": stop}
    options |= {"optimizer": torch.optim.Adam, "clip": math.inf}
    with _tuned(model, found, again, layer_class) as tuned, torch.enable_grad():
        loop.train_(model, tokens, ReferenceKL(original, identity), **settings, **options)
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


def seconds_per_step(model: nn.Module, calibration, reference: Reference, *, batch: int = 1) -> float:
    """Seconds of one step of `tune_` on this machine: the second of two trial steps, which change nothing."""
    tokens = texts.tokens(calibration, model)
    again = activations.must_recompute(model, batch * tokens.shape[1])
    _check(1, batch, len(tokens))
    with _tuned(model, quantized_layers(model), again):
        for _ in range(2):
            with timing.stopwatch() as watch, torch.enable_grad():
                _step(model, reference, {"input_ids": tokens[:batch], "window": torch.arange(batch)}).backward()
    return watch.seconds


@dataclass(frozen=True, eq=False)
class ReferenceKL:
    """The loss KL(original || model) on the windows of `reference`; called as `loss(model, batch)`."""

    reference: Reference
    identity: dict = field(default_factory=dict)
    evaluates: ClassVar[bool] = True  # a block draws no random numbers

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        return _step(model, self.reference, batch)


def _step(model: nn.Module, original: Reference, batch: dict) -> Tensor:
    """Mean KL in nats over the windows of `batch`, ready for `backward`."""
    states, projection = chunked.parts(model, minibatch.inputs(batch))
    rows = [original.rows(int(index), 1) for index in batch["window"]]
    return _MeanKL.apply(states[:, :-1], projection, rows)


class _MeanKL(torch.autograd.Function):
    """Mean of `_loss` over windows; the forward pass computes the gradient, the backward pass returns it."""

    @staticmethod
    def forward(ctx, states: Tensor, projection: Callable, originals: list[logits.Rows]) -> Tensor:
        total, gradients, count = 0.0, [], states.shape[0] * states.shape[1]
        with torch.enable_grad():
            for some, original in zip(states.detach(), originals):
                loss, gradient = _loss(some, projection, original, count)
                total += loss
                gradients.append(gradient)
        ctx.save_for_backward(torch.stack(gradients))
        return torch.tensor(total, dtype=torch.float64, device=states.device)

    @staticmethod
    def backward(ctx, outer: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None


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
    model: nn.Module,
    found: dict[str, QuantLinear],
    again: bool,
    layer_class: type[LearnableScaleLinear] = LearnableScaleLinear,
) -> Iterator[dict[str, LearnableScaleLinear]]:
    """Replace the layers by `layer_class` inside the context; again: recompute blocks in the backward pass."""
    parts = {name: layer_class(layer, model.dtype) for name, layer in found.items()}
    with trained_alone(model, parts, again):
        yield parts


@contextlib.contextmanager
def trained_alone(model: nn.Module, parts: dict[str, LearnableScaleLinear], again: bool) -> Iterator[None]:
    """Context in which `parts` stand for the layers of `model` that they wrap, and nothing else is trained.

    again: recompute the blocks in the backward pass instead of keeping their activations.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with logits.evaluating(model), activations.recomputed(model) if again else contextlib.nullcontext():
            for parameter in trained:
                parameter.requires_grad_(False)
            for name, part in parts.items():
                model.set_submodule(name, part)
            yield
    finally:
        for name, part in parts.items():
            model.set_submodule(name, part.layer)
        for parameter in trained:
            parameter.requires_grad_(True)


def quantized_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """The quantized layers inside the blocks of `model` by name; ValueError for a model without any."""
    found = {name: layer for name, layer in calibrate.layers(model).items() if isinstance(layer, QuantLinear)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no quantized layers; scales are tuned after a quantizer; call one first "
            "(quantizers.gptq.quantize_, say)."
        )
    return found


def _check(steps: int, batch: int, count: int) -> None:
    if steps < 1 or not 1 <= batch <= count:
        raise ValueError(
            f"steps={steps} and batch={batch} with {count} windows; there must be 1 or more steps, and 1 to {count} "
            "windows in a batch; change them, or give more windows."
        )
