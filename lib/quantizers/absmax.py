"""Absmax quantization: the largest magnitude goes to the largest code, zero to zero, everything else in proportion.

    X_q = round(top · X / max|X|),  top = 2**(bits-1) - 1  (127 at 8 bits)

The codes are symmetric, -top to top: the one code below -top is given up, and with it the need for a zero point.
Source: Dettmers et al., "LLM.int8()", arXiv 2208.07339, section 2.1, absmax quantization.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.jobs import JobState, fingerprint
from lib.quantized.grid import HUGE, TINY, Quantized, fitted, quantize
from lib.quantizers import calibrate, layerwise

WHOLE = 0  # group size for one grid for the whole matrix


@torch.no_grad()
def quantize_(
    model: nn.Module,
    calibration=None,
    *,
    bits: int,
    group_size: int = -1,
    state=None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: not used, part of the common signature. bits: 2 to 8. group_size: columns that share a grid; -1 gives
    each row one ("per row"), 0 gives the whole matrix one ("per tensor"). state: folder that keeps finished blocks, so
    that a killed job resumes.
    """
    return round_(model, absmax, bits=bits, group_size=group_size, state=state)


def absmax(weight: Tensor, *, bits: int, group_size: int) -> Quantized:
    """Round `weight` [rows, columns] to the grids that its largest magnitudes span; `group_size` as in `quantize_`.

    Scales are rounded to bfloat16 before the codes are chosen, so a code may differ by one from the formula's.
    Raises ValueError for bits or a group size that do not fit, and for weights that are not finite.
    """
    if group_size == WHOLE:
        return whole(absmax, weight, bits=bits)
    size = fitted(weight.shape[1], bits=bits, group_size=group_size)
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinite values; a grid needs finite ones; check the checkpoint.")
    groups = weight.float().reshape(len(weight), -1, size)
    scale = (groups.abs().amax(-1) / (2 ** (bits - 1) - 1)).to(torch.bfloat16)
    # a group of zeros keeps them whatever its scale
    scale = torch.where(scale.float() >= TINY, scale, torch.ones_like(scale)).clamp(max=HUGE)
    # no clamp to -top is needed: a scale is off by at most 1/512, which moves 127 by a quarter of a code
    return Quantized(quantize(weight, scale, None, bits=bits), scale, None, bits, size)


def whole(method: Callable[..., Quantized], weight: Tensor, *, bits: int) -> Quantized:
    """`method` with one grid for the whole matrix: quantize it as a single row, then give that row's grid to all.

    The grid is stored once per row, like any other: "per tensor" increases the error here and saves no bytes.
    """
    rows, columns = weight.shape
    single = method(weight.reshape(1, -1), bits=bits, group_size=-1)
    zero = single.zero_point if single.zero_point is None else single.zero_point.repeat(rows, 1)
    codes, scale = single.codes.reshape(rows, columns), single.scale.repeat(rows, 1)
    return single._replace(codes=codes, scale=scale, zero_point=zero, group_size=columns)


def round_(
    model: nn.Module, method: Callable[..., Quantized], *, bits: int, group_size: int, state=None, **job
) -> dict[str, Quantized]:
    """Replace every linear layer inside the blocks of `model` by `method(weight, bits, group_size)`.

    job: further arguments by which a folder of finished blocks identifies its job.
    """
    per_tensor = group_size == WHOLE and not isinstance(group_size, bool)
    calibrate.check_layers(model, bits=bits, group_size=-1 if per_tensor else group_size)
    settings = {"bits": bits, "group_size": group_size}
    if state is not None:
        state = JobState(state, method=method.__name__, **fingerprint(model), **settings, **job)
    return layerwise.replace_(model, lambda weight: method(weight, **settings), state=state)
