"""GPTAQ: as GPTQ, but the outputs to keep are those of the original model on the original model's inputs.

Behind compressed layers a layer no longer sees its original inputs X̃ but inputs X that have drifted. GPTQ keeps
W X; GPTAQ keeps W X̃, so that each layer cancels part of the error that the layers before it have caused.

Source: Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", arXiv 2504.02692.
Symbols are the paper's: ΔX = X̃ - X, H = 2 X Xᵀ, and U is GPTQ's factor, Uᵀ U = H⁻¹.
"""

import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.models.capture import cross_moment, second_moment
from lib.quantized.grid import Quantized, choose, fitted
from lib.quantized.levels import to_level_
from lib.quantizers import calibrate
from lib.quantizers.gptq import BLOCK, inverse_factor, revived
from lib.sources import texts


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
    alpha: float = 0.25,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    alpha: fraction of the drift to cancel, 0 (none: GPTQ) to 1 (all, as estimated on the calibration text). The paper
    has no such factor; the authors' program uses 0.25. The rest as in `gptq.quantize_`. It costs one more
    pass of the original and keeps one block's original inputs beside the drifted ones.
    """
    check_alpha(alpha)
    calibrate.check_layers(
        model, bits=bits, group_size=group_size, candidates=candidates, symmetric=symmetric, levels=levels
    )
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens, streams=2)
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels}
    settings |= {"act_order": act_order, "candidates": candidates, "alpha": alpha}
    if state is not None:
        state = JobState(state, method="gptaq", **fingerprint(model, tokens, device), **settings)

    def quantize_layer(names: list[str], weight: Tensor, given: Tensor, clean: Tensor) -> Quantized:
        return gptaq(weight, second_moment(given), cross_moment(clean, given), **settings)

    return calibrate.sequential_pairs(model, tokens, quantize_layer, state=state, device=device)


@torch.no_grad()
def gptaq(
    weight: Tensor,
    hessian: Tensor,
    cross: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    act_order: bool = True,
    candidates: int = 8,
    alpha: float = 0.25,
) -> Quantized:
    """Quantize `weight` [rows, columns] so that Ŵ X comes closest to W X̃.

    hessian: 2/n X Xᵀ, cross: 2/n ΔX Xᵀ (`capture.cross_moment`), both [columns, columns].
    """
    check_alpha(alpha)
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    hessian, dead = revived(hessian)
    weight = weight.float().masked_fill(dead, 0)  # as in GPTQ
    grid = {"bits": bits, "group_size": size, "symmetric": symmetric, "levels": levels, "candidates": candidates}
    scale, zero = choose(weight, importance=hessian.diagonal(), **grid)

    columns = torch.arange(weight.shape[1], device=weight.device)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else columns
    upper = inverse_factor(hessian[order][:, order])
    push = alpha * pushes(cross.float()[order][:, order], upper)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes[:, order] = _columns(weight[:, order], upper, push, scale, zero, order // size, bits)
    return Quantized(codes, scale, zero, bits, size, levels=levels)


def pushes(cross: Tensor, upper: Tensor) -> Tensor:
    """P [columns, columns]: row q is the change of the columns after q that compensates ΔX_q, per unit of w_q.

    The columns after q can undo w_q ΔX_q best by least squares, w_q ΔX_q Xᵀ H⁻¹ with the Hessian of those columns
    alone. Its inverse is the lower right part of Uᵀ U, the same U for all q, so that all rows are found at once:
    P = ((ΔX Xᵀ Uᵀ) ⊙ M) U, where M keeps the entries above the diagonal.
    """
    return (cross @ upper.T).triu_(1) @ upper


def _columns(weight, upper, push, scale: Tensor, zero: Tensor | None, group: Tensor, bits: int) -> Tensor:
    """GPTQ's Algorithm 1 with one more term: codes [rows, columns]; column j lies on grid `group[j]`."""
    rest = weight.T.contiguous()  # a column of W is then contiguous memory
    step = scale.float().T.contiguous()[group]
    middle = torch.full_like(step, 2 ** (bits - 1)) if zero is None else zero.float().T.contiguous()[group]
    halves = middle if zero is not None and zero.is_floating_point() else [None] * len(rest)
    codes, diagonal, top = torch.empty_like(rest), upper.diagonal().tolist(), 2**bits - 1
    for start in range(0, len(rest), BLOCK):
        block, after = slice(start, start + BLOCK), slice(start + BLOCK, None)
        part, factor, gain = rest[block], upper[block, block], push[block, block]
        errors = torch.empty_like(part)
        for j, w in enumerate(part):
            s, z, q = step[start + j], middle[start + j], codes[start + j]
            to_level_(torch.div(w, s, out=q), halves[start + j]).add_(z).clamp_(0, top)
            error = errors[j].copy_(w).sub_((q - z).mul_(s)).div_(diagonal[start + j])
            # equation 18: the first term is GPTQ's, the second cancels the drift of column j
            part[j + 1 :].addr_(factor[j, j + 1 :], error, alpha=-1).addr_(gain[j, j + 1 :], w)
        rest[after].addmm_(upper[block, after].T, errors, alpha=-1).addmm_(push[block, after].T, part)
    return codes.T.to(torch.uint8)


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless `alpha` is from 0 to 1."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r} of the drift; 0 (none) to 1 (all) is allowed; 0.25 is what the authors use.")
