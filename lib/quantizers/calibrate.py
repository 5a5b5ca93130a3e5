"""The walk over a model's blocks: the one place that hooks a model.

`walk` visits the blocks in order. Each block runs on the outputs of the compressed blocks before it, and inside the
block each linear layer sees inputs that the already compressed layers of the same block produced. That takes one
forward pass: a hook sees the inputs of all calibration windows at once, the algorithm answers with a `Quantized`, its
values are put in the layer's place, and the pass goes on. Only one block's working set is alive at a time, and with
`device` only one block needs to be there, so a model larger than the device's memory streams through it.
"""

from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from lib import progress
from lib.jobs import State
from lib.models import capture
from lib.models.blocks import blocks, config, linears, path_of_blocks, refuse_adapters
from lib.quantized.grid import Quantized, check, check_candidates, check_finite
from lib.quantized.replace import replace_

Visit = Callable[[list[str], Tensor, Tensor], Quantized | None]
VisitPair = Callable[[list[str], Tensor, Tensor, Tensor], Quantized | None]
VisitBlock = Callable[[str, nn.Module, Tensor, Tensor, tuple], dict[str, Quantized]]
ROUTED = "layers behind a router are not supported; use a method that needs no calibration (rtn, hqq)."


@torch.no_grad()
def walk(
    model: nn.Module,
    tokens: Tensor,
    visit: Visit,
    *,
    first: int | None = None,
    state: State | None = None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Replace every linear layer inside the blocks by what `visit(names, weight, hessian)` returns; return all by name.

    Layers that read the same inputs (query, key and value) are visited together: `names` are theirs and `weight`
    [rows, columns] is their rows, one layer below the other, because no row depends on another once the inputs are
    given. A visit that returns None leaves them as they are, which is how a model is observed without a change.
    tokens: [count, length]. hessian: `inputs.second_moment`. first: visit only so many blocks, the others stay as they
    are. state: keeps each finished block on disk, so that a killed walk resumes at the first unfinished block and ends
    in the same bytes. device: where a block is while it is visited (default: where it already is).
    """

    def step(prefix: str, block: nn.Module, hidden: Tensor, call: tuple) -> tuple[Tensor, dict[str, Quantized]]:
        def look(names: list[str], weight: Tensor, seen: Tensor) -> Quantized | None:
            return visit([f"{prefix}.{name}" for name in names], weight, capture.second_moment(seen))

        return visit_layers(block, hidden, call, prefix, look)

    return _each_block(model, tokens, step, first=first, state=state, device=device)


@torch.no_grad()
def walk_pairs(
    model: nn.Module,
    tokens: Tensor,
    visit: VisitPair,
    *,
    first: int | None = None,
    state: State | None = None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """As `walk`, for methods that aim at the original's outputs: `visit(names, weight, given, clean)`.

    given: the inputs [count, length, columns] that the layers have behind the compressed layers. clean: those that
    they have in the original model; the same in the first layers of the first block. `inputs.second_moment(given)` and
    `inputs.cross_moment(clean, given)` are what most methods make of them. Each block runs once more, before it is
    compressed, on the original's stream; of that run the layers' inputs are kept until their visit: one block's
    inputs more than `walk` needs (`check_memory(..., streams=2)`).
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
        def look(names: list[str], weight: Tensor, seen: Tensor) -> Quantized | None:
            *_, clean = map(original.pop, names)  # all the same tensor, which nothing holds after this visit
            return visit([f"{prefix}.{name}" for name in names], weight, seen, clean)

        return visit_layers(block, hidden, call, prefix, look)

    return _each_block(model, tokens, step, first=first, state=state, device=device, before=before)


@torch.no_grad()
def walk_blocks(
    model: nn.Module,
    tokens: Tensor,
    visit: VisitBlock,
    *,
    clean: Tensor | None = None,
    state: State | None = None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """As `walk`, a block at a time: `visit(prefix, block, hidden, targets, call)` returns the block's layers by name.

    hidden: inputs [count, length, hidden size] that the compressed blocks before it produce. targets: the outputs of
    the original block on the original model's inputs, which is what the compressed block should answer. call: the
    other arguments of the block, for `inputs.run_block(block, hidden, call)`. Names are relative to the block.
    clean: what the original's first block receives, [count, length, hidden size], where that is not what it receives
    now because the embedding is compressed already.
    Gradients are off; a visit that trains turns them on for itself and leaves the block's weights as they were.
    """
    original: list[Tensor] = [] if clean is None else [clean]

    def step(prefix: str, block: nn.Module, hidden: Tensor, call: tuple) -> tuple[Tensor, dict[str, Quantized]]:
        kept = visit(prefix, block, hidden, original[0], call)
        replace_(block, kept)
        return capture.run_block(block, hidden, call), kept

    def before(block: nn.Module, hidden: Tensor, call: tuple) -> None:
        # without `clean`, the first block's inputs are the same in the compressed and in the original model
        start = original[0].to(hidden.device) if original else hidden
        original[:] = [capture.run_block(block, start, call)]

    return _each_block(model, tokens, step, state=state, device=device, before=before)


def _each_block(model, tokens, step, *, first=None, state, device, before=None) -> dict[str, Quantized]:
    """Compress each block by `step(prefix, block, hidden, call) -> (outputs, layers)`, or read it from `state`."""
    captured, path = capture.capture(model, tokens), path_of_blocks(model)
    hidden, done = captured.hidden, {}
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
            block.to(device or home)  # a file is read to the processor
            hidden = capture.run_block(block, hidden, call)
        for name in kept:
            block.get_submodule(name).forget()
        block.to(home)
        # as the layers hold them: what `device` made would stay there, block by block
        done |= {f"{path}.{index}.{name}": block.get_submodule(name).quantized for name in kept}
    if done:
        mark(model)
    return done


def visit_layers(block, hidden, call, prefix, look) -> tuple[Tensor, dict[str, Quantized]]:
    """One forward pass of `block` over all windows; layers are compressed when their inputs arrive.

    look(names, weight, seen) -> Quantized | None, with names relative to the block and the inputs that they share.
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
            quantized = look(names, torch.cat(weights), args[0])
            if quantized is not None:
                for each, weight, part in zip(names, weights, split(quantized, [len(w) for w in weights])):
                    found[each] = part
                    weight.copy_(part.dense())

        return compress

    with capture.hooks(layers, hook):
        hidden = capture.run_block(block, hidden, call)
    return hidden, {name: found[name] for name in layers if name in found}


def split(quantized: Quantized, rows: list[int]) -> list[Quantized]:
    """`quantized` cut into matrices of so many `rows`; no two share memory, so that each can be saved by itself."""
    codes, scale, zero, codebook = quantized.codes, quantized.scale, quantized.zero_point, quantized.codebook
    zeros = [None] * len(rows) if zero is None else zero.split(rows)
    parts = zip(codes.split(rows), scale.split(rows), zeros)
    books = (None if codebook is None else codebook.clone() for _ in rows)
    return [
        quantized._replace(codes=c.clone(), scale=s.clone(), zero_point=z if z is None else z.clone(), codebook=book)
        for (c, s, z), book in zip(parts, books)
    ]


def mark(model: nn.Module) -> None:
    """Tell `model` that it is quantized, so that plain `save_pretrained` writes codes that any reader understands."""
    from lib.export import compressed_tensors

    compressed_tensors.mark(model)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers inside the blocks, by their full name in the model, in the order of the blocks."""
    path = path_of_blocks(model)
    return {f"{path}.{name}": layer for name, layer in linears(model.get_submodule(path)).items()}


def check_layers(model: nn.Module, *, bits: int | dict[str, int], group_size: int, candidates: int = 1) -> None:
    """Raise ValueError before the work when a layer inside the blocks can't take this grid or a weight is no number."""
    check_candidates(candidates)
    refuse_adapters(model)
    for name, layer in layers(model).items():
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} is a {type(layer).__name__} already; load the original model and quantize that.")
        check(layer.in_features, bits=bits[name] if isinstance(bits, dict) else bits, group_size=group_size, name=name)
    check_finite(model)


def check_memory(model: nn.Module, tokens: Tensor, *, streams: int = 1) -> None:
    """Raise MemoryError before the work when the activations of one block would not fit into the machine's memory.

    All windows pass through a block at once: its inputs and outputs, and about four tensors as wide as its widest
    layer (gate, up, their product, the attention's parts), are alive together. streams: 2 where the original's
    activations are kept beside them.
    """
    widest = max(max(layer.in_features, layer.out_features) for layer in layers(model).values())
    size = model.dtype.itemsize
    needed = streams * tokens.numel() * (2 * config(model).hidden_size + 4 * widest) * size
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(
            f"{len(tokens)} windows of {tokens.shape[1]} tokens need about {needed / 1e9:.1f} GB beside the model and "
            f"{free / 1e9:.1f} GB are free; use about {max(1, int(len(tokens) * free / needed))} windows or fewer."
        )
