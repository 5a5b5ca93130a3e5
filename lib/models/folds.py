"""Scale folding: finds a norm or linear layer that can divide its outputs by what the next layers multiply back.

Dividing channel c of a norm by s_c and multiplying column c of every layer that reads it by s_c preserves the function
of the block. Which layer feeds which is not listed by architecture: each candidate is tried in a copy of the block with
random weights, and is accepted if it undoes the change that scaling the columns alone makes in the copy's output. Thus
a gated MLP passes a scale through its `up` half, ReLU passes one and GELU does not, and heads that share values share
their scales.
"""

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lib.models.blocks import config, linears
from lib.models.equivalence import LARGE, floated, randomised, run

LEFT = 1e-3  # allowed error as a fraction of the change by scaling the columns alone; rounding leaves about 1e-6


@dataclass(frozen=True)
class Fold:
    """Layers of a block that read the same inputs, and the layer before them that can undo a scale of their columns.

    layers: names inside the block. source: name of the norm or linear layer, None where no layer can, which `reason`
    then explains. channels: entries of a scale. repeat: consecutive heads that share `width` channels (grouped-query
    attention), 1 where every column has its own. offset: 1 for norms that multiply by 1 + weight, else 0.
    """

    layers: list[str]
    source: str | None = None
    channels: int = 0
    repeat: int = 1
    width: int = 1
    offset: int = 0
    reason: str = field(default="", compare=False)

    def inside(self, prefix: str) -> "Fold":
        """The same fold with full names: those of a block that the model calls `prefix`."""
        source = self.source and f"{prefix}.{self.source}"
        return replace(self, layers=[f"{prefix}.{name}" for name in self.layers], source=source)

    def outside(self, prefix: str) -> "Fold":
        """The opposite of `inside`: names as they are inside the block that the model calls `prefix`."""
        cut = len(prefix) + 1
        return replace(self, layers=[name[cut:] for name in self.layers], source=self.source and self.source[cut:])

    def spread(self, scale: Tensor) -> Tensor:
        """A scale [channels] as the columns of `layers` see it, [channels · repeat]."""
        return scale.view(-1, 1, self.width).expand(-1, self.repeat, -1).reshape(-1)

    def gather(self, columns: Tensor) -> Tensor:
        """The mean of `columns` [channels · repeat] over those that share a channel, [channels]."""
        return columns.view(-1, self.repeat, self.width).mean(1).reshape(-1)


@torch.no_grad()
def fold_(block: nn.Module, fold: Fold, scale: Tensor) -> None:
    """Divide the outputs of `fold.source` by `scale` [channels], and multiply the columns of `fold.layers` by it.

    As exact as the dtype of the weights; exact for powers of two, but for norms that multiply by 1 + weight.
    """
    source = block.get_submodule(fold.source)
    scale = _divide_(source, scale.to(source.weight.device), fold.offset)
    for name in fold.layers:
        _multiply_(block.get_submodule(name), fold.spread(scale))


def _divide_(source: nn.Module, scale: Tensor, offset: int) -> Tensor:
    """Divide the outputs of `source`; returns the exact divisor, after rounding of the norm's weights."""
    channels = slice(-len(scale), None)  # of a layer that computes several things, the last (values, up)
    weight, bias = source.weight[channels], getattr(source, "bias", None)
    if weight.ndim == 1:
        before = offset + weight.float()
        weight.copy_(before / scale - offset)
        after = offset + weight.float()
        scale = torch.where((after != 0) & (before != 0), before / after, scale)
    else:
        weight.copy_(weight.float() / scale[:, None])
    if bias is not None:
        bias[channels] = (bias[channels].float() / scale).to(bias.dtype)
    return scale


def _multiply_(layer: nn.Module, scale: Tensor) -> None:
    layer.weight.copy_(layer.weight.float() * scale.to(layer.weight.device))


@torch.no_grad()
def find(model: nn.Module, block: nn.Module, call: tuple[tuple, dict], length: int) -> list[Fold]:
    """The folds of `block`, one for each group of layers that read the same inputs, in the order in which they run.

    call: how the model calls the block on `length` tokens, as `capture.capture` records it.
    """
    generator = torch.Generator().manual_seed(0)
    trial = randomised(copy.deepcopy(block).float(), generator)
    call, text = floated(call), config(model)
    size = text.hidden_size
    hidden = torch.randn(1, length, size, generator=generator).to(next(trial.parameters()).device)
    groups, order = _trace(trial, hidden, call)
    return [_find(trial, hidden, call, names, order, text) for names in groups]


def _find(trial, hidden, call, names: list[str], order: list[str], text) -> Fold:
    """The fold of the layers `names`, from the nearest of the layers that ran before them."""
    columns = trial.get_submodule(names[0]).in_features
    scale = 2 ** torch.randn(columns, generator=torch.Generator().manual_seed(1)).round().to(hidden.device)
    for source in reversed(order[: order.index(names[0])]):
        for fold in _candidates(trial.get_submodule(source), source, names, columns, text):
            if _undoes(trial, hidden, call, fold, scale[: fold.channels]):
                return fold
    return Fold(names, reason="no norm or linear layer before them passes a scale on unchanged")


def _candidates(module: nn.Module, source: str, names: list[str], columns: int, text) -> list[Fold]:
    """Candidate folds of `module` into layers of `columns` columns: a norm, all or the last rows, or shared heads."""
    if isinstance(module, nn.Linear):
        heads, shared = (getattr(text, f"num_{name}_heads", None) or 0 for name in ("attention", "key_value"))
        found = [Fold(names, source, columns)]
        if 0 < shared < heads and columns % heads == heads % shared == 0:
            repeat, width = heads // shared, columns // heads
            found.append(Fold(names, source, columns // repeat, repeat, width))
        return [fold for fold in found if fold.channels <= module.out_features]
    if module.weight.shape == (columns,):
        return [Fold(names, source, columns, offset=offset) for offset in (0, 1)]
    return []


def _undoes(trial: nn.Module, hidden: Tensor, call, fold: Fold, scale: Tensor) -> bool:
    """Whether `fold` undoes the change that scaling the columns alone makes in the block's output.

    A linear layer is tried with large outputs too: a clipping between the layers passes no scale, though small values
    do not show it.
    """
    source = trial.get_submodule(fold.source)
    sizes = (1.0, LARGE) if isinstance(source, nn.Linear) else (1.0,)
    return all(_undoes_at(trial, hidden, call, fold, scale, size) for size in sizes)


def _undoes_at(trial: nn.Module, hidden: Tensor, call, fold: Fold, scale: Tensor, size: float) -> bool:
    """As `_undoes`, with the weights of the source enlarged by `size`."""
    parts = [trial.get_submodule(name) for name in [fold.source, *fold.layers]]
    before = copy.deepcopy([part.state_dict() for part in parts])
    if size != 1:
        parts[0].weight.mul_(size)
    expected = run(trial, hidden, call)
    for layer in parts[1:]:
        _multiply_(layer, fold.spread(scale))
    alone = (run(trial, hidden, call) - expected).norm()
    _divide_(parts[0], scale, fold.offset)
    left = (run(trial, hidden, call) - expected).norm()
    for part, state in zip(parts, before):
        part.load_state_dict(state)
    return bool(left <= LEFT * alone)


def _trace(trial: nn.Module, hidden: Tensor, call) -> tuple[list[list[str]], list[str]]:
    """Linear layers grouped by the tensor that they read, and all layers with a weight, both in running order."""
    seen, order, handles = [], [], []

    def look(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            order.append(name)
            if isinstance(module, nn.Linear):
                group = next((names for given, names in seen if given is args[0]), None)
                seen.append((args[0], [name])) if group is None else group.append(name)

        return hook

    plain = {*linears(trial)} | {name for name, part in trial.named_modules() if _is_norm(part)}
    for name in plain:
        handles.append(trial.get_submodule(name).register_forward_pre_hook(look(name)))
    run(trial, hidden, call)
    for handle in handles:
        handle.remove()
    return [names for _, names in seen], order


def _is_norm(module: nn.Module) -> bool:
    """Whether `module` multiplies its channels by a weight each: a norm, whatever its class is called."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1
