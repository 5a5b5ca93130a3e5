"""Sensitivity: how far the predictions move when one group of layers alone gets fewer bits.

The divergence of each group is measured at `PROBE` bits on a few windows, and extrapolated to the other widths by the
ratio of output errors:

    loss_b = loss_probe · err_b / err_probe,      err_b = Σ h (w - ŵ_b)²,    h the diagonal of the Hessian,

because a small change of a layer changes the divergence quadratically (HAWQ-V2, Dong et al., arXiv 1911.03852, section
3.1, has the same second-order argument with a Hessian of the training loss). Layers are rounded to nearest here, not
compensated: that ranks the layers alike, in a tenth of the time.

A layer whose weights already lie on a grid of `PROBE` bits, as in a model that was quantized before, has almost no
error there, and the ratio would be meaningless: its divergence is measured at the fewest bits instead.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lib import files, timing
from lib.jobs import JobState, fingerprint
from lib.metrics import divergence
from lib.models import blocks, capture, logits
from lib.quantized.grid import BITS
from lib.quantizers import calibrate, embedding, trial
from lib.sources import texts

PROBE = 3  # bits at which a group's divergence is measured
NEGLIGIBLE = 1e-3  # fraction of the error at the fewest bits below which the error at `PROBE` is meaningless
Losses = dict[tuple[str, ...], dict[int, float]]  # names of the layers that share a width -> bits -> KL in nats a token


@torch.no_grad()
def measure(
    model: nn.Module,
    calibration,
    *,
    widths: Iterable[int] = BITS,
    group_size: int = 64,
    levels: str = "integer",
    windows: int = 2,
    state=None,
) -> Losses:
    """Loss in nats a token of each group of layers, and of the embedding, at each of `widths`; `model` is not changed.

    For each group, runs the blocks from its own on over the first `windows` of `calibration`, so that the time grows
    with the square of the number of blocks B: that is G · B (B + 1) / 2 passes of a block over these windows, where
    a block has G groups of layers that share inputs (4 in Llama). The rest is linear in B. The Hessians are those
    of all windows. Memory beside the model: one block's working set. state: folder that keeps the losses of each
    finished block, so that a killed job resumes; one of other arguments is refused. Raises ValueError, before the
    work, where a matrix can't take one of `widths`, and for a loss that is not finite.
    """
    grid = {"group_size": group_size, "levels": levels}
    widths = check_widths(model, widths, **grid)
    if windows < 1:
        raise ValueError(f"windows={windows}; divergences are measured on 1 or more of them; 2 is the default.")
    tokens = texts.tokens(calibration, model)
    few, found, grid = tokens[:windows], {}, {"widths": widths, **grid}
    calibrate.check_memory(model, tokens, streams=2)
    if state is not None:
        state = JobState(state, method="sensitivity", **fingerprint(model, tokens), **grid, windows=len(few))
    reference = divergence.remember(model, few)
    calls, parts = capture.capture(model, few).calls, list(blocks.blocks(model))

    def measure_block(prefix: str, block: nn.Module, hidden: Tensor, _: Tensor, call: tuple) -> dict:
        index = parts.index(block)
        rest = list(zip(parts[index:], calls[index:]))

        def diverged() -> float:
            return _divergence(model, reference, _run(rest, hidden[: len(few)]), few)

        found.update(_once(state, f"{index:04d}", _of_block, block, prefix, hidden, call, diverged, **grid))
        return {}

    with logits.evaluating(model), state or contextlib.nullcontext():
        calibrate.sequential_blocks(model, tokens, measure_block)
        return found | _once(state, "embedding", _of_embedding, model, tokens, reference, few, **grid)


def _once(state: JobState | None, unit: str, work: Callable[..., Losses], *args, **grid) -> Losses:
    """The losses of a `unit` (a block or the embedding), from `state` or else computed by `work`."""
    path = state and state.folder / f"losses-{unit}.json"
    if path and path.exists():
        kept = json.loads(path.read_text())
        return {tuple(names): {int(bits): loss for bits, loss in table.items()} for names, table in kept}
    found = work(*args, **grid)
    if path:
        files.write_text(path, json.dumps(list(found.items())))
    return found


def _of_block(block, prefix, hidden, call, diverged, *, widths, **grid) -> Losses:
    """Losses of the groups of layers of `block`: each is `diverged()` while that group alone is changed."""
    found = {}
    for names, hessian in _moments(block, hidden, call):
        weights = [block.get_submodule(name).weight for name in names]
        rounded, errors = _tried(torch.cat(weights).float(), hessian.diagonal(), widths, **grid)
        left = falling({bits: errors[bits] for bits in widths})
        probe = min(widths) if errors[PROBE] < NEGLIGIBLE * left[min(widths)] else PROBE
        with _changed(weights, rounded[probe]):
            loss = diverged()
        key = tuple(f"{prefix}.{name}" for name in names)
        carried = {bits: loss * left[bits] / (errors[probe] or 1.0) for bits in widths}
        found[key] = falling(check(key, carried))
    return found


def _of_embedding(model, tokens, reference, few, widths, **grid) -> Losses:
    """Losses of embedding and head (one group where they are tied), measured at every width: they are large."""
    table, head = blocks.embeddings(model), blocks.head(model)
    names = {"embedding": blocks.path_of(model, table), "head": blocks.path_of(model, head)}
    share = embedding.final_moment(model, tokens).diagonal()
    alike = torch.ones_like(share)
    if blocks.tied(model):
        groups = {tuple(names.values()): (head.weight, share + embedding.RIDGE * share.mean())}
    else:
        groups = {(names["embedding"],): (table.weight, alike), (names["head"],): (head.weight, share)}
    calls, found = list(zip(blocks.blocks(model), capture.capture(model, few).calls)), {}
    for key, (weight, weighs) in groups.items():
        found[key] = {}
        for bits in widths:
            with _changed([weight], trial.rounded(weight, weighs, bits, **grid)):
                hidden = capture.capture(model, few).hidden
                found[key][bits] = _divergence(model, reference, _run(calls, hidden), few)
        found[key] = falling(check(key, found[key]))
    return found


def falling(table: dict[int, float]) -> dict[int, float]:
    """`table` by bits, made non-increasing: weights that lie on a grid gain nothing from a finer one."""
    order = sorted(table)
    return dict(zip(order, itertools.accumulate((table[bits] for bits in order), min)))


def check_widths(model: nn.Module, widths: Iterable[int], *, group_size: int, levels="integer") -> tuple[int, ...]:
    """Return `widths`; raise ValueError before the work for none, or where a measured matrix can't take one."""
    widths = tuple(widths)
    if not widths:
        raise ValueError("widths are empty; they are the bits to choose from, 2 to 8; leave them out for all of these.")
    for bits in widths:
        embedding.check_parts(model, bits=bits, group_size=group_size)
    calibrate.check_layers(model, bits=widths[0], group_size=group_size, levels=levels)
    return widths


def check(names: tuple[str, ...], table: dict[int, float]) -> dict[int, float]:
    """Return the losses by bits of the layers called `names`; ValueError for missing ones and for one not finite."""
    if not table:
        raise ValueError(f"{', '.join(names)} have no losses; bits are chosen among those of the table; measure them.")
    if bad := {bits: loss for bits, loss in table.items() if not math.isfinite(loss)}:
        bits, loss = next(iter(bad.items()))
        raise ValueError(
            f"{', '.join(names)} would cost {loss} nats a token at {bits} bits; bits are allotted by losses that are "
            "finite; check these weights and the calibration text, or give one number of bits for all layers."
        )
    return table


@torch.no_grad()
def seconds(model: nn.Module, tokens: Tensor, *, widths=BITS, group_size: int = 64, windows: int = 2) -> float:
    """Seconds of `measure` without its passes over the windows, timed on the first block; nothing is changed."""
    few, parts = tokens[:windows], list(blocks.blocks(model))
    captured, reference = capture.capture(model, few), divergence.remember(model, few)
    with logits.evaluating(model):
        found = _moments(parts[0], captured.hidden, captured.calls[0])
        with timing.stopwatch() as rounding:
            for names, hessian in found:
                weight = torch.cat([parts[0].get_submodule(name).weight for name in names]).float()
                _tried(weight, hessian.diagonal(), widths, group_size=group_size)
        with timing.stopwatch() as run:
            hidden = _run(list(zip(parts, captured.calls)), captured.hidden)
        with timing.stopwatch() as head:
            _divergence(model, reference, hidden, few)
    # each group of layers of each block, which on average has half of the blocks behind it
    groups = len(parts) * len(found) * (run.seconds * (len(parts) + 1) / (2 * len(parts)) + head.seconds)
    tables = [blocks.head(model).weight] if blocks.tied(model) else [blocks.embeddings(model).weight] * 2
    layers = sum(layer.weight.numel() for layer in blocks.linears(parts[0]).values())
    share = sum(table.numel() for table in tables) / layers
    tables = share * rounding.seconds + len(tables) * len(widths) * (run.seconds + head.seconds)
    return len(parts) * rounding.seconds + groups + tables


def _tried(weight: Tensor, share: Tensor, widths, **grid) -> tuple[dict[int, Tensor], dict[int, float]]:
    """Values of `weight` at `PROBE` and each of `widths`, and their errors, by bits."""
    rounded = {bits: trial.rounded(weight, share, bits, **grid) for bits in {PROBE, *widths}}
    return rounded, {bits: trial.error(weight, values, share) for bits, values in rounded.items()}


def _moments(block: nn.Module, hidden: Tensor, call: tuple) -> list[tuple[list[str], Tensor]]:
    """For each group of layers of `block` that share inputs: their names and the second moment of those inputs."""
    layers, found = blocks.linears(block), []
    sharing = capture.sharing(block, layers, hidden[:1], call)

    def hook(name: str):
        def look(_: nn.Module, args: tuple) -> None:
            if name == sharing[name][0]:
                found.append((sharing[name], capture.second_moment(args[0])))

        return look

    with capture.hooks(layers, hook):
        capture.run_block(block, hidden, call)
    return found


class _changed:
    """Context in which `weights` (stacked rows) have other values; restored to the same bytes after it."""

    def __init__(self, weights: list[Tensor], values: Tensor):
        self.weights, self.values = weights, values.split([len(weight) for weight in weights])

    def __enter__(self):
        self.before = [weight.clone() for weight in self.weights]
        for weight, part in zip(self.weights, self.values):
            weight.data.copy_(part)

    def __exit__(self, *_):
        for weight, part in zip(self.weights, self.before):
            weight.data.copy_(part)


def _run(parts: list, hidden: Tensor) -> Tensor:
    for block, call in parts:
        hidden = capture.run_block(block, hidden, call)
    return hidden


def _divergence(model: nn.Module, reference, hidden: Tensor, tokens: Tensor) -> float:
    """Mean KL from `reference` of the predictions from `hidden`, the outputs of the last block."""
    run, total = logits.after_blocks(model), 0.0
    for index in range(len(hidden)):
        original, found = reference.rows(index, 1), run(hidden[index : index + 1])
        for chunk in logits.chunks(hidden.shape[1] - 1, blocks.head(model).out_features):
            p, q = original(chunk).float().log_softmax(-1), found(chunk).float().log_softmax(-1)
            total += (p.exp() * (p - q)).sum().item()
    return total / tokens[:, 1:].numel()
