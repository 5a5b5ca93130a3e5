"""Layer errors: how much each compressed layer, taken alone, changes its outputs.

For a layer with weights W and compressed weights Ŵ, on the original model's inputs X, the relative output error is
‖W X - Ŵ X‖² / ‖W X‖² = tr(Δ H Δᵀ) / tr(W H Wᵀ), Δ = W - Ŵ, with the Hessian H of the inputs; its square root would
be the ratio of norms. The trivial baseline is 1: a layer whose outputs are zero.
"""

import torch
from torch import Tensor, nn

from lib.metrics.score import Score
from lib.quantizers import calibrate
from lib.sources import texts


@torch.no_grad()
def measure(
    original: nn.Module, compressed: dict[str, nn.Module], calibration, *, first: int | None = None
) -> dict[str, dict[str, Score]]:
    """{method: {layer name: Score}} for models whose layers have the names of the original's.

    compressed: models by method, such as {"rtn": model, "gptq": model}. One pass of the original over `calibration`
    (windows of text or token ids) serves all of them; `first` restricts it to so many blocks. The standard error is
    over the output rows. Raises ValueError when a layer has another shape in a compressed model.
    """
    found: dict[str, dict[str, Score]] = {method: {} for method in compressed}

    def observe(names: list[str], weight: Tensor, hessian: Tensor) -> None:
        rows = [original.get_submodule(name).out_features for name in names]
        for name, part in zip(names, weight.split(rows)):
            for method, model in compressed.items():
                other = model.get_submodule(name).weight
                if other.shape != part.shape:
                    raise ValueError(
                        f"{name} is {tuple(other.shape)} in {method!r} and {tuple(part.shape)} in the original; "
                        "layers are compared one by one; compare models of the same shape."
                    )
                found[method][name] = relative_error(part, other, hessian)

    calibrate.sequential(original, texts.tokens(calibration, original), observe, first=first)
    return found


def relative_error(weight: Tensor, other: Tensor, hessian: Tensor) -> Score:
    """Relative output error of `other` [rows, columns] in the place of `weight`, with its error over rows."""
    weight = weight.float()
    change = weight - other.float()
    lost = torch.einsum("rc,cd,rd->r", change, hessian, change).clamp(min=0)
    power = torch.einsum("rc,cd,rd->r", weight, hessian, weight)
    ratio = (lost.sum() / power.sum()).item()
    # the ratio of two means: its linearized standard error
    spread = ((lost - ratio * power).std() / power.mean() / len(power) ** 0.5).item() if len(power) > 1 else None
    return Score(ratio, spread, len(power), "share of output power", False, baseline=1.0)
