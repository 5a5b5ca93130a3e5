"""Quantizes embedding and head, the two matrices outside the blocks, on a grid of their own.

In a small compressed model they are the largest part: in SmolLM2-135M they are 21 % of the weights, and at 16 bits 65 %
of the bytes beside 2-bit blocks. Their rows are vocabulary entries. The head multiplies every row with the same final
hidden states x, so GPTQ (arXiv 2210.17323) applies with H = 2/n Σ x xᵀ; the embedding looks up single rows, in which
all columns have equal weight. Where both are one matrix (tied), it is quantized once, under

    H + ridge · mean(diag H) · I        the head's objective, and a share of the embedding's.
"""

import contextlib

import torch
from torch import Tensor, nn

from lib import timing
from lib.jobs import JobState, fingerprint
from lib.models import blocks, capture, logits
from lib.quantized.grid import Quantized, check, check_candidates, check_finite
from lib.quantized.levels import check as check_levels
from lib.quantized.quant_embedding import factor_of
from lib.quantized.replace import place_
from lib.quantizers import calibrate
from lib.quantizers.gptq import gptq
from lib.quantizers.rtn import rtn
from lib.sources import texts

ROWS = 8192  # rows quantized at once: they don't depend on one another
RIDGE = 0.1  # share of the mean diagonal of H: the least divergence at 2 and 3 bits among 0, 0.1, 0.3 and 1


@torch.no_grad()
def quantize_(
    model: nn.Module,
    calibration=None,
    *,
    bits: int,
    head_bits: int | None = None,
    group_size: int = 64,
    symmetric: bool = False,
    levels: str = "integer",
    candidates: int = 8,
    ridge: float = RIDGE,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize embedding and head of `model`, in place; return codes and grids by layer name (tied: the same twice).

    calibration: windows of text or token ids [count, length] for the head's Hessian; without it, and for an embedding
    that isn't tied, weights go to the nearest point of the best of `candidates` ranges. bits: 2 to 8. head_bits: of a
    head that isn't tied, None for the same. group_size: columns per grid, -1 for a row. levels: of the grids, see
    `quantized.levels`. ridge: weight of the embedding's use in a tied matrix, 0 for none. state: folder that keeps the
    result, so that a killed job resumes (with calibration only). device: where the rows are quantized.
    """
    check_parts(model, bits=bits, head_bits=head_bits, group_size=group_size)
    check_candidates(candidates)
    check_levels(levels, symmetric)
    check_finite(model)
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels}
    settings |= {"candidates": candidates} | ({} if head_bits in (None, bits) else {"head_bits": head_bits})
    tokens = None if calibration is None else texts.tokens(calibration, model)
    kept = contextlib.nullcontext()
    if tokens is not None and state is not None:
        kept = JobState(state, method="embedding", **fingerprint(model, tokens, device), **settings, ridge=ridge)
    with kept as state:
        done = state.load(0) if state else None
        if done is None:
            hessian = None if tokens is None else final_moment(model, tokens)
            done = rounded(model, hessian, **settings, ridge=ridge, device=device)
            if state:
                state.save(0, done)
    parts = done.get("embedding", done["head"]), done["head"]
    names = place_(model, *parts)
    calibrate.mark(model)
    return dict(zip(names, parts))


@torch.no_grad()
def rounded(
    model: nn.Module,
    hessian: Tensor | None,
    *,
    bits: int,
    head_bits: int | None = None,
    group_size: int = 64,
    symmetric: bool = False,
    levels: str = "integer",
    candidates: int = 8,
    ridge: float = RIDGE,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Codes and grids of "head" and, where that is another matrix, of "embedding"; `model` is not changed.

    hessian: `final_moment` of the model, None for no calibration. The others are those of `quantize_`.
    """
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels}
    settings |= {"candidates": candidates}
    of_head = settings if head_bits is None else settings | {"bits": head_bits}
    tied = blocks.tied(model)
    if tied and hessian is not None:
        hessian = hessian + ridge * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device)
    done = {"head": _by_rows(blocks.head(model).weight, hessian, device, of_head)}
    return done if tied else done | {"embedding": _by_rows(blocks.embeddings(model).weight, None, device, settings)}


def _by_rows(weight: Tensor, hessian: Tensor | None, device, settings) -> Quantized:
    """`weight` rounded a few thousand rows at a time, back on its own device."""
    home, device = weight.device, device or weight.device
    parts = []
    for rows in weight.detach().split(ROWS):
        rows = rows.to(device)
        part = rtn(rows, **settings) if hessian is None else gptq(rows, hessian.to(device), **settings)
        parts.append([None if tensor is None else tensor.to(home) for tensor in part[:3]])
    codes, scale, zero = (None if column[0] is None else torch.cat(column) for column in zip(*parts))
    return part._replace(codes=codes, scale=scale, zero_point=zero)


def seconds(model: nn.Module, *, group_size: int = 64) -> float:
    """Seconds that `rounded` takes with a Hessian, tried on the first `ROWS` rows of the head."""
    weight = blocks.head(model).weight
    with timing.stopwatch() as watch:
        _by_rows(weight[:ROWS], torch.eye(weight.shape[1]), None, {"bits": 4, "group_size": group_size})
    return watch.seconds * max(1, len(weight) / ROWS) * (1 if blocks.tied(model) else 2)


def final_moment(model: nn.Module, tokens: Tensor) -> Tensor:
    """2/n Σ x xᵀ of the hidden states that the head reads on `tokens` [count, length], float32 [hidden, hidden]."""
    total = 0
    with logits.evaluating(model):
        for _, some in logits.batches(tokens, model, "auto", "head"):
            total = total + capture.second_moment(logits.head_inputs(model, some)) * (len(some) / len(tokens))
    return total


def check_parts(model: nn.Module, *, bits: int, group_size: int, head_bits: int | None = None) -> None:
    """Raise ValueError before the work when embedding or head can't take this grid (head_bits: None for the same)."""
    blocks.refuse_adapters(model)
    width = bits if head_bits is None else head_bits
    for part, kind, wanted in ((blocks.embeddings(model), nn.Embedding, bits), (blocks.head(model), nn.Linear, width)):
        name = blocks.path_of(model, part)
        if not isinstance(part, kind):
            raise ValueError(f"{name} is a {type(part).__name__}; load the original model and quantize that.")
        check(part.weight.shape[1], bits=wanted, group_size=group_size, name=name)
    if width != bits and blocks.tied(model):
        raise ValueError(f"bits={bits} and head_bits={width} for one matrix, embedding and head being tied; give one.")
    factor_of(blocks.embeddings(model))
