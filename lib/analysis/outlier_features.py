"""Outlier features: which inputs of a model's layers are far larger than all others, and what they cost in 8 bits.

Source: Dettmers et al., "LLM.int8()", arXiv 2208.07339, section 4.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lib.metrics.score import Score, from_values
from lib.models import blocks, capture
from lib.models.logits import evaluating
from lib.quantizers import absmax, calibrate, int8
from lib.sources import texts


def largest(model: nn.Module, text) -> dict[str, Tensor]:
    """Largest magnitude of every input feature over all tokens of `text`: float32 [in_features] by layer name.

    text: windows of text, or token ids [count, length]. Layers are the linear ones inside the blocks.
    """
    found: dict[str, Tensor] = {}

    def look(name: str, X: Tensor) -> None:
        now = X.abs().amax(0)
        found[name] = torch.maximum(found[name], now) if name in found else now

    _watch(model, text, look)
    return {name: values.cpu() for name, values in found.items()}


def measure(
    model: nn.Module, text, *, thresholds: Iterable[float], layers: Iterable[str] | None = None
) -> dict[str, dict[float, Score]]:
    """Output error of LLM.int8() in each layer alone, on the original's inputs, by threshold.

    The error of a token is ‖ŷ - y‖² / ‖y‖², with y its outputs in float32; the score is the mean over tokens (1
    would be a layer whose outputs are zero), its standard error that of independent tokens. Threshold 0 quantizes no
    input (integer weights alone, a lower bound for every threshold), infinity quantizes all of them. layers: names; all
    linear layers inside the blocks by default.
    """
    thresholds = list(thresholds)
    values: dict = defaultdict(lambda: defaultdict(list))
    parts = calibrate.layers(model)
    names = list(parts if layers is None else _known(layers, parts))
    codes = {name: absmax.absmax(parts[name].weight.detach(), bits=8, group_size=-1) for name in names}
    made = {name: int8.Int8Linear(quantized) for name, quantized in codes.items()}

    def look(name: str, X: Tensor) -> None:
        exact = X @ parts[name].weight.float().T
        power = exact.square().sum(1)
        for threshold in thresholds:
            found = int8.product(X, made[name].codes, made[name].scale, threshold=threshold)
            lost = (found - exact).square().sum(1)
            values[name][threshold].append((lost / power)[power > 0].cpu())

    _watch(model, text, look, names)
    return {
        name: {
            threshold: from_values(torch.cat(parts), "share of output power", higher_is_better=False, baseline=1.0)
            for threshold, parts in each.items()
        }
        for name, each in values.items()
    }


def received(model: nn.Module, text, layer: str) -> Tensor:
    """The inputs of `layer`: float32 [tokens, in_features], all windows of `text` one after the other."""
    parts: list[Tensor] = []
    _watch(model, text, lambda _, X: parts.append(X.cpu()), [layer])
    return torch.cat(parts)


@torch.no_grad()
def _watch(model: nn.Module, text, look: Callable[[str, Tensor], None], names: Iterable[str] | None = None) -> None:
    """Run `model` window by window; `look(name, X)` sees the inputs of each layer, float32 [tokens, features]."""
    tokens, layers = texts.tokens(text, model), calibrate.layers(model)
    if names is not None:
        layers = {name: layers[name] for name in _known(names, layers)}

    def hook(name: str) -> Callable:
        return lambda _, args: look(name, args[0].reshape(-1, args[0].shape[-1]).float())

    with evaluating(model), capture.hooks(layers, hook):
        for window in tokens.split(1):
            blocks.decoder(model)(input_ids=window.to(model.device), use_cache=False)


def _known(names: Iterable[str], layers: dict[str, nn.Module]) -> list[str]:
    names, known = list(names), list(layers)
    if unknown := [name for name in names if name not in layers]:
        raise ValueError(
            f"{unknown[0]!r} is no linear layer inside the blocks; those are {known[0]} to {known[-1]}; "
            "take names from calibrate.layers(model)."
        )
    return names
