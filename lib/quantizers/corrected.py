"""GPTQ with a corrected target (asymmetric calibration): approximates the original's outputs, with a tested correction.

Behind compressed layers a layer sees inputs X where the original sees X̃. With ΔX = X̃ - X and H = 2 X Xᵀ, and up to a
constant that does not depend on Ŵ,

    ‖W X̃ - Ŵ X‖²  =  ‖(W + W ΔX Xᵀ (X Xᵀ)⁻¹ - Ŵ) X‖²

so that GPTQ with the target W + W C H⁻¹, C = 2 ΔX Xᵀ, instead of W minimizes GPTAQ's objective (arXiv 2504.02692); the
grids are then those of the corrected weights. The regression C H⁻¹ has as many coefficients per column as the layer has
columns, and a few thousand tokens overfit it. Therefore only a fraction of it is used, measured for each layer: the
regression from one half of the tokens is tested on the other half (`held_out_share`).
"""

import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.models.capture import cross_moment, second_moment
from lib.quantized.grid import Quantized
from lib.quantizers import calibrate
from lib.quantizers.gptq import gptq, inverse_factor, revived
from lib.sources import texts

ROWS = 256  # rows of a layer that the share is measured on: one number needs no more


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    act_order: bool = True,
    candidates: int = 8,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    The arguments are those of `gptq.quantize_`. It costs one more pass of the original and keeps one block's original
    inputs beside the drifted ones.
    """
    calibrate.check_layers(
        model, bits=bits, group_size=group_size, candidates=candidates, symmetric=symmetric, levels=levels
    )
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens, streams=2)
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels}
    settings |= {"act_order": act_order, "candidates": candidates}
    if state is not None:
        state = JobState(state, method="corrected", **fingerprint(model, tokens, device), **settings)

    def quantize_layer(names: list[str], weight: Tensor, given: Tensor, clean: Tensor) -> Quantized:
        target, hessian = aim(weight, given, clean)
        return gptq(target, hessian, **settings)

    return calibrate.sequential_pairs(model, tokens, quantize_layer, state=state, device=device)


@torch.no_grad()
def aim(weight: Tensor, given: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The target weights [rows, columns] and the Hessian, from inputs X (`given`) and X̃ (`clean`).

    given, clean: [..., columns]. The moments of both halves of the tokens are computed separately; their sum is the
    Hessian.
    """
    weight = weight.float()
    pairs = zip(given.flatten(0, -2).chunk(2), clean.flatten(0, -2).chunk(2))
    halves = [(second_moment(some), cross_moment(true, some)) for some, true in pairs]
    hessian, cross = (sum(parts) / len(parts) for parts in zip(*halves))
    if not cross.any():
        return weight, hessian
    share = held_out_share(weight[:: -(-len(weight) // ROWS)], halves)
    return weight + share * correction(weight, hessian, cross), hessian


def correction(weight: Tensor, hessian: Tensor, cross: Tensor) -> Tensor:
    """W C H⁻¹ [rows, columns], with H damped as in GPTQ: the least-squares compensation of the drifted inputs."""
    upper = inverse_factor(revived(hessian)[0])  # the column of C of an input that is always zero is zero too
    return weight @ cross @ upper.T @ upper


def held_out_share(weight: Tensor, halves: list[tuple[Tensor, Tensor]]) -> float:
    """The fraction α of the correction D that holds on tokens it was not fitted to: 0 (noise) to 1 (all signal).

    halves: (H, C) of two halves of the tokens. ‖W ΔX - α D X‖² on the other half is least at α = tr(W C Dᵀ) / tr(D H
    Dᵀ), here pooled over both directions. The correction that is used is fitted to all tokens, twice as many: if its
    noise is 1/α - 1 of the signal on half the tokens, it is half of that on all.
    """
    if len(halves) < 2:
        return 0.0
    gain = power = 0.0
    for (hessian, cross), (other, outer) in (halves, halves[::-1]):
        found = correction(weight, hessian, cross).double()  # squares of large weights overflow float32
        gain += torch.sum((weight @ outer) * found).item()
        power += torch.sum((found @ other.double()) * found).item()
    half = min(max(gain / power, 0.0), 1.0) if power > 0 else 0.0
    return 2 * half / (1 + half)
