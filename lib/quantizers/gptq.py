"""GPTQ: quantizes one column at a time and compensates its error in the columns that follow.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323. Symbols are the paper's: W [rows, columns] the weights, X their inputs, H = 2 X Xᵀ the Hessian of
‖W X - Ŵ X‖², which is the same for every row.
"""

import itertools

import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.quantized import pairs
from lib.quantized.grid import Quantized, choose, fitted
from lib.quantizers import calibrate, gptq_pairs
from lib.sources import texts

DAMP = (0.01, 0.03, 0.1, 0.3, 1.0)  # fractions of the mean diagonal, tried until the factorization succeeds
BLOCK = 128  # columns whose errors are applied to the rest at once (section 3.3, step 2)


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

    calibration: windows of text, or token ids [count, length]. bits: 2 to 8. group_size: columns per grid, -1 for a
    row. act_order: columns with large inputs first (on grids that are fixed beforehand, "static groups").
    candidates: ranges tried per group. levels: of the grids, see `quantized.levels`; "pairs" for `quantized.pairs`, in
    which columns always come in the order of their inputs. state: folder that keeps finished
    blocks, so that a killed job resumes.
    """
    calibrate.check_layers(
        model, bits=bits, group_size=group_size, candidates=candidates, symmetric=symmetric, levels=levels, paired=True
    )
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens)
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels}
    settings |= {"act_order": act_order, "candidates": candidates}
    if state is not None:
        state = JobState(state, method="gptq", **fingerprint(model, tokens, device), **settings)

    def quantize_layer(names: list[str], weight: Tensor, hessian: Tensor) -> Quantized:
        return gptq(weight, hessian, **settings)

    return calibrate.sequential(model, tokens, quantize_layer, state=state, device=device)


@torch.no_grad()
def gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    act_order: bool = True,
    candidates: int = 8,
) -> Quantized:
    """Quantize `weight` [rows, columns] so that its outputs change least under `hessian` [columns, columns]."""
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    hessian, dead = revived(hessian)
    weight = weight.float().masked_fill(dead, 0)  # any weight will do where the input is zero
    if levels == pairs.LEVELS:
        order = gptq_pairs.paired_order(hessian.diagonal())
        factor = inverse_factor(hessian[order][:, order])
        return gptq_pairs.gptq(weight, hessian, factor, order, group_size=group_size)
    grid = {"bits": bits, "group_size": size, "symmetric": symmetric, "levels": levels, "candidates": candidates}
    scale, zero = choose(weight, importance=hessian.diagonal(), **grid)

    columns = torch.arange(weight.shape[1], device=weight.device)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else columns
    upper = inverse_factor(hessian[order][:, order])
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes[:, order] = _columns(weight[:, order], upper, scale, zero, order // size, bits)
    return Quantized(codes, scale, zero, bits, size, levels=levels)


def revived(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """`hessian` [columns, columns], float32, invertible where inputs are always zero, and a mask [columns] of those.

    Those columns get the mean of the others' diagonal (1 where there are none), which does not change the damping. A
    fixed number would be far too large or too small where inputs are small or large.
    """
    hessian = hessian.float().clone()
    dead = hessian.diagonal() <= 0
    hessian.diagonal()[dead] = 1 if dead.all() else hessian.diagonal()[~dead].mean()
    return hessian, dead


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with Uᵀ U = H⁻¹ (section 3.3, step 3), damped as little as the factorization allows.

    With J the reversal of rows and J H J = L Lᵀ, U = J L⁻¹ J: one factorization, and H is never inverted.
    """
    mean = hessian.diagonal().mean()
    for damp in DAMP:
        damped = hessian.flip(0, 1)
        damped.diagonal().add_(damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            identity = torch.eye(len(lower), device=lower.device)
            upper = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
            if torch.isfinite(upper).all():
                return upper.contiguous()
    raise ValueError(
        f"the Hessian has no Cholesky factor even when damped by {DAMP[-1]:g} of its mean diagonal ({mean:.3g}); "
        "it should be positive semidefinite and finite; check the calibration text and the model for NaN."
    )


def _columns(weight: Tensor, upper: Tensor, scale: Tensor, zero: Tensor | None, group: Tensor, bits: int) -> Tensor:
    """Algorithm 1: codes [rows, columns]; column j lies on grid `group[j]`."""
    rest = weight.T.contiguous()  # a column of W is then contiguous memory
    step = scale.float().T.contiguous()[group]
    middle = torch.full_like(step, 2 ** (bits - 1)) if zero is None else zero.float().T.contiguous()[group]
    if zero is not None and zero.is_floating_point():  # half a code more of zero point and of weight: the same errors
        rest, middle = rest.addcmul(step, middle.frac()), middle.floor()
    codes, diagonal, top = torch.empty_like(rest), upper.diagonal().tolist(), 2**bits - 1
    lines = zip(rest.unbind(), step.unbind(), middle.unbind(), codes.unbind(), diagonal, strict=True)
    for start in range(0, len(rest), BLOCK):
        block = slice(start, start + BLOCK)
        part, factor = rest[block], upper[block, block]
        errors = torch.empty_like(part)
        for j, (w, s, z, q, d) in enumerate(itertools.islice(lines, len(part))):
            torch.div(w, s, out=q).round_().add_(z).clamp_(0, top)
            error = errors[j].copy_(w).sub_((q - z).mul_(s)).div_(d)  # equation 2, with [H⁻¹] by its factor
            part[j + 1 :].addr_(factor[j, j + 1 :], error, alpha=-1)  # equation 3
        rest[start + BLOCK :].addmm_(upper[block, start + BLOCK :].T, errors, alpha=-1)
    return codes.T.to(torch.uint8)
