"""Sequential calibration: the loop over a model's blocks that hands each method the inputs of every linear layer.

`sequential` goes through the blocks in order. Each block runs on the outputs of the compressed blocks before it, and
inside the block each linear layer sees inputs that the already compressed layers of the same block produced. That takes
one forward pass: a hook sees the inputs of all calibration windows at once, the method answers with a `Quantized`, its
values replace the layer's weights, and the pass goes on. Only one block's working set is alive at a time, and with
`device` only one block is on the device, so a model larger than the device's memory streams through it.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib import progress
from lib.export import compressed_tensors
from lib.jobs import JobState
from lib.models import capture
from lib.models.blocks import blocks, linears, path_of_blocks
from lib.quantized.grid import Quantized
from lib.quantized.replace import release_file_, replace_
from lib.quantizers.checks import check_layers, check_memory, layers

__all__ = [
    "check_layers",
    "check_memory",
    "layers",
    "mark",
    "sequential",
    "sequential_blocks",
    "sequential_pairs",
    "split",
]

QuantizeLayer = Callable[[list[str], Tensor, Tensor], Quantized | None]
QuantizePair = Callable[[list[str], Tensor, Tensor, Tensor], Quantized | None]
QuantizeBlock = Callable[[str, nn.Module, Tensor, Tensor, tuple], dict[str, Quantized]]
ROUTED = "layers behind a router are not supported; use a method that needs no calibration (rtn, hqq)."


@torch.no_grad()
def sequential(
    model: nn.Module,
    tokens: Tensor,
    quantize_layer: QuantizeLayer,
    *,
    first: int | None = None,
    state: JobState | None = None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Replace every linear layer inside the blocks by the result of `quantize_layer`; return all results by layer name.

    quantize_layer(names, weight, hessian) -> Quantized | None. Layers that read the same inputs (query, key and value)
    are quantized together: `names` are theirs, `weight` [rows, columns] stacks their rows, since no row depends on
    another once the inputs are given. None leaves them unchanged, which is how a model is only observed.
    tokens: [count, length]. hessian: `capture.second_moment` of the inputs. first: only so many blocks; the others stay
    as they are. state: keeps each finished block on disk, so that a killed job resumes at the first unfinished block
    and ends in the same bytes. device: where a block is while it is quantized (default: where it already is).
    """

    def step(prefix: str, block: nn.Module, hidden: Tensor, call: tuple) -> tuple[Tensor, dict[str, Quantized]]:
        def quantize_shared(names: list[str], weight: Tensor, seen: Tensor) -> Quantized | None:
            return quantize_layer([f"{prefix}.{name}" for name in names], weight, capture.second_moment(seen))

        return quantize_layers(block, hidden, call, prefix, quantize_shared)

    return _each_block(model, tokens, step, first=first, state=state, device=device)


@torch.no_grad()
def sequential_pairs(
    model: nn.Module,
    tokens: Tensor,
    quantize_layer: QuantizePair,
    *,
    first: int | None = None,
    state: JobState | None = None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """As `sequential`, for methods that aim at the original's outputs (asymmetric calibration).

    quantize_layer(names, weight, given, clean) -> Quantized | None. given: the layers' inputs [count, length, columns]
    behind the compressed layers. clean: their inputs in the original model, the same in the first layers of the first
    block. Most methods need `capture.second_moment(given)` and `capture.cross_moment(clean, given)`. Each block runs
    once more on the original's stream before it is compressed, and the layers' inputs of that run are kept until they
    are quantized: one block's inputs more than `sequential` needs (`check_memory(..., streams=2)`).
    """
    stream: list[Tensor] = []
    original: dict[str, Tensor] = {}

    def before(block: nn.Module, hidden: Tensor, call: tuple) -> None:
        # the first block's inputs are the same in the compressed and in the original model
        start = stream.pop().to(hidden.device) if stream else hidden
        original.clear()
        outputs, seen = capture.record(block, linears(block), start, call)
        stream.append(outputs)
        original.update(seen)

    def step(prefix: str, block: nn.Module, hidden: Tensor, call: tuple) -> tuple[Tensor, dict[str, Quantized]]:
        def quantize_shared(names: list[str], weight: Tensor, seen: Tensor) -> Quantized | None:
            *_, clean = map(original.pop, names)  # all the same tensor, which nothing holds afterwards
            return quantize_layer([f"{prefix}.{name}" for name in names], weight, seen, clean)

        return quantize_layers(block, hidden, call, prefix, quantize_shared)

    return _each_block(model, tokens, step, first=first, state=state, device=device, before=before)


@torch.no_grad()
def sequential_blocks(
    model: nn.Module,
    tokens: Tensor,
    quantize_block: QuantizeBlock,
    *,
    clean: Tensor | None = None,
    state: JobState | None = None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """As `sequential`, a block at a time.

    quantize_block(prefix, block, hidden, targets, call) -> the block's layers by their names in it. hidden: inputs
    [count, length, hidden size] from the compressed blocks before it. targets: outputs of the original block on the
    original model's inputs, which the compressed block should reproduce. call: the block's other arguments, for
    `capture.run_block(block, hidden, call)`. clean: the original first block's inputs, [count, length, hidden size],
    where they differ from today's because the embedding is already compressed.
    Gradients are off; a method that trains turns them on for itself and leaves the block's weights unchanged.
    """
    original: list[Tensor] = [] if clean is None else [clean]

    def step(prefix: str, block: nn.Module, hidden: Tensor, call: tuple) -> tuple[Tensor, dict[str, Quantized]]:
        kept = quantize_block(prefix, block, hidden, original[0], call)
        replace_(block, kept)
        return capture.run_block(block, hidden, call), kept

    def before(block: nn.Module, hidden: Tensor, call: tuple) -> None:
        # without `clean`, the first block's inputs are the same in the compressed and in the original model
        start = original[0].to(hidden.device) if original else hidden
        original[:] = [capture.run_block(block, start, call)]

    return _each_block(model, tokens, step, state=state, device=device, before=before)


def _each_block(model, tokens, step, *, first=None, state, device, before=None) -> dict[str, Quantized]:
    """Quantize each block by `step(prefix, block, hidden, call) -> (outputs, layers)`, or read it from `state`."""
    done, path = {}, path_of_blocks(model)
    with state or contextlib.nullcontext():
        captured = capture.capture(model, tokens)
        hidden = captured.hidden
        for index, block in enumerate(progress.bar(blocks(model)[:first], desc="blocks", unit="block")):
            home = next(block.parameters()).device
            block.to(device or home)
            hidden, call = hidden.to(device or home), capture.moved(captured.calls[index], device or home)
            if before:
                before(block, hidden, call)
            kept = state.load(index) if state else None
            if kept is None:
                hidden, kept = step(f"{path}.{index}", block, hidden, call)
                replace_(block, kept)
                if state:
                    state.save(index, kept)
            else:
                replace_(block, kept)
                block.to(device or home)  # a file is read to the CPU
                hidden = capture.run_block(block, hidden, call)
            for name in kept:
                block.get_submodule(name).forget()
            block.to(home)
            # the layers' own tensors: those made on `device` would accumulate there, block by block
            done |= {f"{path}.{index}.{name}": block.get_submodule(name).quantized for name in kept}
    if done:
        mark(model)
    return done


def quantize_layers(block, hidden, call, prefix, quantize_shared) -> tuple[Tensor, dict[str, Quantized]]:
    """One forward pass of `block` over all windows; each layer is quantized when its inputs arrive.

    quantize_shared(names, weight, seen) -> Quantized | None, with names relative to the block and the inputs that they
    share.
    """
    layers, found = linears(block), {}
    sharing = capture.sharing(block, layers, hidden[:1], call)
    if missing := layers.keys() - sharing:
        raise ValueError(f"{prefix} never ran {', '.join(sorted(missing))}; {ROUTED}")

    def hook(name: str) -> Callable:
        def compress(_: nn.Linear, args: tuple) -> None:
            names = sharing[name]
            if name != names[0]:
                return
            weights = [layers[each].weight for each in names]
            quantized = quantize_shared(names, torch.cat(weights), args[0])
            if quantized is not None:
                for each, weight, part in zip(names, weights, split(quantized, [len(w) for w in weights])):
                    found[each] = part
                    weight.copy_(part.dense())

        return compress

    with capture.hooks(layers, hook):
        hidden = capture.run_block(block, hidden, call)
    return hidden, {name: found[name] for name in layers if name in found}


def split(quantized: Quantized, rows: list[int]) -> list[Quantized]:
    """`quantized` split into matrices of `rows` rows; no two share memory, so that each can be saved by itself."""
    codes, scale, zero, codebook = quantized.codes, quantized.scale, quantized.zero_point, quantized.codebook
    zeros = [None] * len(rows) if zero is None else zero.split(rows)
    parts = zip(codes.split(rows), scale.split(rows), zeros)
    books = (None if codebook is None else codebook.clone() for _ in rows)
    return [
        quantized._replace(codes=c.clone(), scale=s.clone(), zero_point=z if z is None else z.clone(), codebook=book)
        for (c, s, z), book in zip(parts, books)
    ]


def mark(model: nn.Module) -> None:
    """Mark `model` as quantized, so that plain `save_pretrained` writes the packed format; drop its old weights."""
    compressed_tensors.mark(model)
    release_file_(model)
