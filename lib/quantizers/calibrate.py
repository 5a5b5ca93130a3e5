"""The walk over a model's blocks: the one place that hooks a model.

`walk` visits the blocks in order. Each block runs on the outputs of the compressed blocks before it, and inside the
block each linear layer sees inputs that the already compressed layers of the same block produced. That takes one
forward pass: a hook sees the inputs of all calibration windows at once, the algorithm answers with a `Quantized`, its
values are put in the layer's place, and the pass goes on. Only one block's working set is alive at a time, and with
`device` only one block needs to be there, so a model larger than the device's memory streams through it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from lib import progress
from lib.models.blocks import blocks, decoder, linears, path_of_blocks
from lib.quantizers.grid import Quantized, check, dequantize
from lib.quantizers.linear import QuantLinear
from lib.quantizers.state import State

PANEL = 384  # columns of one panel of the Hessian; panels below the diagonal are mirrored, not computed

Visit = Callable[[list[str], Tensor, Tensor], Quantized | None]


@dataclass
class Captured:
    """What the first block receives, and how each block is called.

    hidden: embeddings of all windows, [count, length, hidden size]. calls: for each block the positional and keyword
    arguments after the hidden states (masks, rotary embeddings), which serve any number of windows.
    """

    hidden: Tensor
    calls: list[tuple[tuple, dict]]


@torch.no_grad()
def capture(model: nn.Module, tokens: Tensor, *, batch: int = 16) -> Captured:
    """Run `tokens` [count, length] through the embeddings alone, recording how the model calls its blocks."""
    calls, hidden, parts = {}, [], list(blocks(model))

    def stand_in(index: int) -> Callable:
        def forward(states: Tensor, *args, **kwargs) -> Tensor:
            calls[index] = (args, kwargs)
            if index == 0:
                hidden.append(states)
            return states

        return forward

    with contextlib.ExitStack() as stack:
        for index, block in enumerate(parts):
            block.forward = stand_in(index)
            stack.callback(block.__dict__.pop, "forward")
        device = model.get_input_embeddings().weight.device
        for chunk in tokens.split(batch):
            decoder(model)(input_ids=chunk.to(device), use_cache=False)
        inputs = torch.cat(hidden)
        # the arguments of one window broadcast over any number of them
        decoder(model)(input_ids=tokens[:1].to(device), use_cache=False)
    return Captured(inputs, [calls[index] for index in range(len(parts))])


def run_block(block: nn.Module, hidden: Tensor, call: tuple[tuple, dict]) -> Tensor:
    """Hidden states [count, length, hidden size] after `block`, called as `capture` recorded it."""
    output = block(hidden, *call[0], **call[1])
    return output[0] if isinstance(output, tuple) else output


def second_moment(inputs: Tensor) -> Tensor:
    """H = 2/n Σ x xᵀ of `inputs` [..., columns], float32 [columns, columns] (GPTQ, arXiv 2210.17323, equation 3).

    The products of two bfloat16 numbers are exact in float32, so bfloat16 inputs may take the processor's bfloat16
    instructions, which add up in float32.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    exact, columns = rows.dtype == torch.bfloat16, rows.shape[1]
    hessian = torch.zeros(columns, columns, device=rows.device)
    with _bfloat16_products() if exact else contextlib.nullcontext():
        for chunk in rows.split(8192):
            chunk = chunk.float()
            for start in range(0, columns, PANEL):
                panel = slice(start, start + PANEL)
                hessian[panel, start:].addmm_(chunk[:, panel].T, chunk[:, start:])
    return (hessian.triu() + hessian.triu(1).T) * (2 / len(rows))


@contextlib.contextmanager
def _bfloat16_products() -> Iterator[None]:
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@torch.no_grad()
def walk(
    model: nn.Module, tokens: Tensor, visit: Visit, *, state: State | None = None, device: str | None = None
) -> dict[str, Quantized]:
    """Replace every linear layer inside the blocks by what `visit(names, weight, hessian)` returns; return all by name.

    Layers that read the same inputs (query, key and value) are visited together: `names` are theirs and `weight`
    [rows, columns] is their rows, one layer below the other, because no row depends on another once the inputs are
    given. A visit that returns None leaves them as they are, which is how a model is observed without a change.
    tokens: [count, length]. hessian: `second_moment` of the inputs. state: keeps each finished block on disk,
    so that a killed walk resumes at the first unfinished block and ends in the same bytes. device: where a block is
    while it is visited (default: where it already is).
    """
    captured, path = capture(model, tokens), path_of_blocks(model)
    hidden, done = captured.hidden, {}
    for index, block in enumerate(progress.bar(blocks(model), desc="blocks", unit="block")):
        home = next(block.parameters()).device
        block.to(device or home)
        call = _to(captured.calls[index], device or home)
        kept = state.load(index) if state else None
        if kept is None:
            hidden, kept = _visit_block(block, hidden.to(device or home), call, f"{path}.{index}", visit)
            replace_(block, kept)
            if state:
                state.save(index, kept)
        else:
            replace_(block, kept)
            hidden = run_block(block, hidden.to(device or home), call)
        for name in kept:
            block.get_submodule(name).forget()
        block.to(home)
        done |= {f"{path}.{index}.{name}": quantized for name, quantized in kept.items()}
    if done:
        mark(model)
    return done


def _visit_block(block, hidden, call, prefix, visit) -> tuple[Tensor, dict[str, Quantized]]:
    """One forward pass of `block` over all windows; layers are compressed when their inputs arrive."""
    layers, found = linears(block), {}
    sharing = _sharing(block, layers, hidden[:1], call)
    if missing := layers.keys() - sharing:
        raise ValueError(f"{prefix} never ran {', '.join(sorted(missing))}; layers behind a router are not supported.")

    def hook(name: str) -> Callable:
        def compress(_: nn.Linear, args: tuple) -> None:
            names = sharing[name]
            if name != names[0]:
                return
            weights = [layers[each].weight for each in names]
            quantized = visit([f"{prefix}.{each}" for each in names], torch.cat(weights), second_moment(args[0]))
            if quantized is not None:
                for each, weight, part in zip(names, weights, split(quantized, [len(w) for w in weights])):
                    found[each] = part
                    weight.copy_(dequantize(part.codes, part.scale, part.zero_point, bits=part.bits))

        return compress

    with _hooks(layers, hook):
        hidden = run_block(block, hidden, call)
    return hidden, {name: found[name] for name in layers if name in found}


def _sharing(block, layers, window, call) -> dict[str, list[str]]:
    """For each layer the names of all that read the same inputs, in the order in which they run; from one window."""
    seen: list[tuple[Tensor, list[str]]] = []

    def hook(name: str) -> Callable:
        def look(_: nn.Linear, args: tuple) -> None:
            if seen and seen[-1][0] is args[0]:
                seen[-1][1].append(name)
            else:
                seen.append((args[0], [name]))

        return look

    with _hooks(layers, hook):
        run_block(block, window, call)
    return {name: names for _, names in seen for name in names}


@contextlib.contextmanager
def _hooks(layers: dict[str, nn.Module], hook: Callable[[str], Callable]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
        yield


def split(quantized: Quantized, rows: list[int]) -> list[Quantized]:
    """`quantized` cut into matrices of so many `rows`."""
    codes, scale, zero, bits, size = quantized
    zeros = [None] * len(rows) if zero is None else zero.split(rows)
    parts = zip(codes.split(rows), scale.split(rows), zeros)
    return [Quantized(c.clone(), s.clone(), z if z is None else z.clone(), bits, size) for c, s, z in parts]


def mark(model: nn.Module) -> None:
    """Tell `model` that it is quantized, so that plain `save_pretrained` writes codes that any reader understands."""
    from lib.export import compressed_tensors

    compressed_tensors.mark(model)


def replace_(block: nn.Module, kept: dict[str, Quantized]) -> None:
    """Put a `QuantLinear` in the place of each linear layer of `block` (or of the model) that `kept` names."""
    for name, quantized in kept.items():
        block.set_submodule(name, QuantLinear(quantized, block.get_submodule(name).bias))


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers inside the blocks, by their full name in the model, in the order of the blocks."""
    return {f"{path_of_blocks(model)}.{name}": layer for name, layer in linears(blocks(model)).items()}


def check_layers(model: nn.Module, *, bits: int, group_size: int) -> None:
    """Raise ValueError before the work when a layer inside the blocks can't take this grid."""
    for name, layer in layers(model).items():
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} is a {type(layer).__name__} already; load the original model and quantize that.")
        check(layer.in_features, bits=bits, group_size=group_size, name=name)


def check_memory(model: nn.Module, tokens: Tensor) -> None:
    """Raise MemoryError before the work when the activations of one block would not fit into the machine's memory.

    All windows pass through a block at once: its inputs and outputs, and about four tensors as wide as its widest
    layer (gate, up, their product, the attention's parts), are alive together.
    """
    widest = max(max(layer.in_features, layer.out_features) for layer in layers(model).values())
    size = model.get_input_embeddings().weight.element_size()
    needed = tokens.numel() * (2 * model.get_input_embeddings().embedding_dim + 4 * widest) * size
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(
            f"{len(tokens)} windows of {tokens.shape[1]} tokens need about {needed / 1e9:.1f} GB beside the model and "
            f"{free / 1e9:.1f} GB are free; use about {max(1, int(len(tokens) * free / needed))} windows or fewer."
        )


def _to(value, device):
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_to(part, device) for part in value)
    return {key: _to(part, device) for key, part in value.items()} if isinstance(value, dict) else value
