"""Captures what the layers of a model receive: block inputs, and the second moments of layer inputs."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.models import partial, rotary, structure
from lib.models.blocks import blocks, decoder, device, embeddings
from lib.models.eval_mode import evaluating

PANEL = 384  # columns of one panel of the Hessian; panels below the diagonal are mirrored, not computed
_TRIED: set[tuple] = set()  # classes and configurations of models whose blocks run by themselves


@dataclass
class Captured:
    """The inputs of the first block, and the arguments of each block's call.

    hidden: embeddings of all windows, [count, length, hidden size]. calls: for each block the positional and keyword
    arguments after the hidden states (masks, rotary embeddings), valid for any number of windows.
    """

    hidden: Tensor
    calls: list[tuple[tuple, dict]]


@torch.no_grad()
def capture(model: nn.Module, tokens: Tensor, *, batch: int = 16) -> Captured:
    """Run `tokens` [count, length] through the embeddings alone, recording how the model calls its blocks.

    Raises ValueError for a model whose blocks can't be run by themselves, or give other outputs then.
    """
    parts = list(blocks(model))
    try:
        found = _captured(model, parts, tokens, batch)
        run_block(parts[0], found.hidden[:2], found.calls[0])  # two windows with the arguments of one
        _try(model, parts, min(16, tokens.shape[1]))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{type(model).__name__} has blocks that do not run by themselves on any number of windows ({reason}); "
            "methods that calibrate run one block after the other, as Llama and models built like it allow; use one "
            "that needs no calibration, such as rtn or hqq."
        ) from error
    return found


def _captured(model: nn.Module, parts: list[nn.Module], tokens: Tensor, batch: int) -> Captured:
    calls, hidden, answer = {}, [], partial.answers(model)

    def stand_in(index: int) -> Callable:
        def forward(*args, **kwargs) -> Tensor | tuple:
            states, calls[index] = partial.taken(args, kwargs)
            if index == 0:
                hidden.append(states)
            return answer(states)

        return forward

    with contextlib.ExitStack() as stack:
        for index, block in enumerate(parts):
            block.forward = stand_in(index)
            stack.callback(block.__dict__.pop, "forward")
        stack.enter_context(rotary.forgetting(model))
        home = device(model)
        for chunk in tokens.split(batch):
            decoder(model)(input_ids=chunk.to(home), use_cache=False)
        inputs = torch.cat(hidden)
        # the arguments of one window broadcast over any number of them
        decoder(model)(input_ids=tokens[:1].to(home), use_cache=False)
    return Captured(inputs, [calls[index] for index in range(len(parts))])


def _try(model: nn.Module, parts: list[nn.Module], length: int) -> None:
    """Raise ValueError unless two texts of `length` tokens through one block after the other are what the
    model makes of them.

    A block may receive more than hidden states: values that depend on the tokens (Gemma 3n), or results of earlier
    blocks. Tried once for each class of models and blocks, and configuration.
    """
    config = json.dumps(structure.values(model.config.to_dict()), sort_keys=True, default=str)
    kind = type(model), *(type(each) for each in parts), config
    if kind in _TRIED:
        return
    tokens, own = torch.arange(3, 3 + 2 * length).view(2, -1) % embeddings(model).num_embeddings, []
    with evaluating(model):
        hook = parts[-1].register_forward_hook(lambda *given: own.append(partial.first(given[-1])))
        decoder(model)(input_ids=tokens.to(device(model)), use_cache=False)
        hook.remove()
        found = _captured(model, parts, tokens, 2)
        hidden = found.hidden
        for block, call in zip(parts, found.calls):
            hidden = run_block(block, hidden, call)
    if (hidden - own[0]).norm() > (1e-3 if hidden.dtype == torch.float32 else 0.05) * own[0].norm():
        raise ValueError("run alone, they answer otherwise")
    _TRIED.add(kind)


def run_block(block: nn.Module, hidden: Tensor, call: tuple[tuple, dict]) -> Tensor:
    """Hidden states [count, length, hidden size] after `block`, called as `capture` recorded it."""
    return partial.first(block(hidden, *call[0], **call[1]))


def moved(value, device):
    """`value`, a block's arguments, with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    return {key: moved(part, device) for key, part in value.items()} if isinstance(value, dict) else value


def second_moment(inputs: Tensor) -> Tensor:
    """H = 2/n Σ x xᵀ of `inputs` [..., columns], float32 [columns, columns] (GPTQ, arXiv 2210.17323, equation 3).

    The products of two bfloat16 numbers are exact in float32, so bfloat16 inputs may take the processor's bfloat16
    instructions, which add up in float32.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    exact, columns = rows.dtype == torch.bfloat16, rows.shape[1]
    hessian = torch.zeros(columns, columns, device=rows.device)
    with bfloat16_products() if exact else contextlib.nullcontext():
        for chunk in rows.split(8192):
            chunk = chunk.float()
            for start in range(0, columns, PANEL):
                panel = slice(start, start + PANEL)
                hessian[panel, start:].addmm_(chunk[:, panel].T, chunk[:, start:])
    return (hessian.triu() + hessian.triu(1).T) * (2 / len(rows))


def cross_moment(original: Tensor, inputs: Tensor) -> Tensor:
    """C = 2/n Σ (x̃ - x) xᵀ of `original` x̃ and `inputs` x, both [..., columns]; float32 [columns, columns].

    On the scale of `second_moment`, so that C H⁻¹ is the regression of the difference between original and present
    inputs on the present ones (GPTAQ, arXiv 2504.02692: ΔX Xᵀ). The difference stays in the type of the inputs: of
    two numbers within a factor of two of each other it is exact there (Sterbenz' lemma), of others it is rounded
    once.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    drift = original.reshape(rows.shape) - rows
    cross = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    with bfloat16_products() if rows.dtype == torch.bfloat16 else contextlib.nullcontext():
        for change, chunk in zip(drift.split(8192), rows.split(8192)):
            cross.addmm_(change.float().T, chunk.float())
    return cross.mul_(2 / len(rows))


@contextlib.contextmanager
def bfloat16_products() -> Iterator[None]:
    """Products of float32 tensors on the CPU take their factors in bfloat16, and add up in float32 as before."""
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def record(block, layers, hidden, call) -> tuple[Tensor, dict[str, Tensor]]:
    """Run `block`; return its outputs and the inputs of its layers by name (layers that share them: one tensor)."""
    seen: dict[str, Tensor] = {}
    with hooks(layers, lambda name: lambda _, args: seen.update({name: args[0]})):
        outputs = run_block(block, hidden, call)
    return outputs, seen


def sharing(block, layers, window, call) -> dict[str, list[str]]:
    """For each layer the names of all that read the same inputs, in the order in which they run; from one window."""
    seen: list[tuple[Tensor, list[str]]] = []

    def hook(name: str) -> Callable:
        def look(_: nn.Linear, args: tuple) -> None:
            if seen and seen[-1][0] is args[0]:
                seen[-1][1].append(name)
            else:
                seen.append((args[0], [name]))

        return look

    with hooks(layers, hook):
        run_block(block, window, call)
    return {name: names for _, names in seen for name in names}


@contextlib.contextmanager
def hooks(layers: dict[str, nn.Module], hook: Callable[[str], Callable]) -> Iterator[None]:
    """Register `hook(name)` before each of `layers` inside the block, and remove all of them after it."""
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
        yield
